#!/usr/bin/env bash
# Restore what backup.sh wrote:  restore.sh FOLDER/2026-11-25T050000Z
# The two databases must be there and empty, so that nothing is ever overwritten; stop the tracking server before. Afterwards
# `start-mlflow upgrade` brings an older schema up to the server's version.
set -euo pipefail
folder="${1:?which backup}"
(cd "$folder" && sha256sum --check --quiet SHA256SUMS)
for database in mlflow mlflow_accounts; do
  tables="$(psql --no-psqlrc --tuples-only --no-align --dbname="$database" \
    --command="select count(*) from information_schema.tables where table_schema = 'public'")"
  if [ "$tables" != 0 ]; then
    echo "$database has $tables tables already; restore into an empty database" >&2
    exit 1
  fi
done
for database in mlflow mlflow_accounts; do
  pg_restore --exit-on-error --no-owner --single-transaction --dbname="$database" "$folder/$database.dump"
done
