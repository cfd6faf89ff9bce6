#!/usr/bin/env bash
# Run the team's MLflow server: schemas first (`start.sh upgrade`), then the server (`start.sh serve`). What it must be told stands in the
# environment, never among its arguments, which everyone on a machine can read. NAME_FILE is a file whose content becomes NAME, as Docker's
# secrets are given.
#   MLFLOW_BACKEND_STORE_URI       postgresql+psycopg2://mlflow@postgres:5432/mlflow      (plain postgresql:// means psycopg 3)
#   PGPASSWORD                     its password; libpq reads it, so no address holds one
#   MLFLOW_ARTIFACTS_DESTINATION   s3://bucket/mlflow, gs://…, or a folder: only the server reaches it
#   MLFLOW_SERVER_ALLOWED_HOSTS    names by which clients call it; others are answered 403 (DNS rebinding)
#   MLFLOW_AUTH_ADMIN_PASSWORD     twelve letters at least, for the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY the same in all replicas
#   MLFLOW_CLIENT_USERNAME, MLFLOW_CLIENT_PASSWORD   the account of training, which `upgrade` makes
set -euo pipefail

for file in PGPASSWORD_FILE MLFLOW_AUTH_ADMIN_PASSWORD_FILE MLFLOW_FLASK_SERVER_SECRET_KEY_FILE MLFLOW_CLIENT_PASSWORD_FILE \
  AWS_SECRET_ACCESS_KEY_FILE; do
  if [ -n "${!file:-}" ]; then
    export "${file%_FILE}=$(cat "${!file}")"
    unset "$file"
  fi
done

: "${MLFLOW_BACKEND_STORE_URI:?where runs are kept}" "${MLFLOW_ARTIFACTS_DESTINATION:?where artifacts are kept}"
: "${MLFLOW_SERVER_ALLOWED_HOSTS:?by which names clients call this server}"
export MLFLOW_AUTH_CONFIG_PATH="${MLFLOW_AUTH_CONFIG_PATH:-/etc/mlflow/basic_auth.ini}"
# seven consumers of a job queue that nothing here uses would take 1.9 GB (MLflow 3.17)
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false

case "${1:-serve}" in
  upgrade)
    exec python "$(dirname "$0")/upgrade.py" "$(sed -n 's/^database_uri *= *//p' "$MLFLOW_AUTH_CONFIG_PATH")"
    ;;
  serve)
    # the server's processes have no use for the account of training
    unset MLFLOW_CLIENT_USERNAME MLFLOW_CLIENT_PASSWORD
    exec mlflow server --app-name basic-auth --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}"
    ;;
  *)
    echo "start.sh $1: no such word; write upgrade or serve" >&2
    exit 2
    ;;
esac
