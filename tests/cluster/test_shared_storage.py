"""What a node does when it is asked whether it sees the same folder."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cluster.probes import reaches, sees


def test_who_sees_the_file_replies_beside_it(tmp_path):
    (tmp_path / "driver").write_text("abc")
    assert sees(str(tmp_path), "driver", "reply", "abc", 0) == ""
    assert (tmp_path / "reply").read_text() == "abc"


def test_a_file_that_is_seen_late_is_waited_for(tmp_path):
    later = threading.Timer(0.5, (tmp_path / "driver").write_text, ["abc"])
    later.start()
    assert sees(str(tmp_path), "driver", "reply", "abc", 30) == ""
    later.join()


def test_another_folder_is_told_and_not_written_into(tmp_path):
    assert "not seen there (No such file or directory)" in sees(str(tmp_path), "driver", "reply", "abc", 0)
    assert "not seen there (No such file or directory)" in sees(str(tmp_path / "none"), "driver", "reply", "abc", 0)
    (tmp_path / "driver").write_text("of another")
    assert "another file stands there" in sees(str(tmp_path), "driver", "reply", "abc", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["driver"]


def test_a_folder_that_can_only_be_read_is_told(tmp_path):
    (tmp_path / "driver").write_text("abc")
    (tmp_path / "reply").mkdir()
    assert sees(str(tmp_path), "driver", "reply", "abc", 0).endswith("but nothing can be written (Is a directory)")


class Refusing(BaseHTTPRequestHandler):
    """Answers every question with the status that stands in it."""

    def do_GET(self):
        self.send_error(int(self.path.strip("/")))

    def log_message(self, *_):
        pass


def test_a_server_that_wants_a_login_is_there_and_one_that_fails_is_not():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_port}"
    assert reaches(f"{where}/401", 10) == ""
    assert reaches(f"{where}/500", 10) == "error 500"
    server.shutdown()
    server.server_close()
    assert "refused" in reaches(f"{where}/401", 10)
    assert reaches("nonsense", 10)
