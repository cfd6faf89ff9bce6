#!/usr/bin/env bash
# Back up the tracking server's two databases into a new folder below FOLDER, and print its name:  backup.sh FOLDER
# The connection is libpq's: PGHOST, PGPORT, PGUSER, PGPASSWORD. Artifacts are in the bucket or folder of MLFLOW_ARTIFACTS_DESTINATION:
# turn on its versioning; a run is written once and never changed, so artifacts of a later day than the databases do no harm.
set -euo pipefail
folder="${1:?into which folder}"
target="$folder/$(date --utc +%Y-%m-%dT%H%M%SZ)"
umask 077
mkdir -p "$target.partial"
for database in mlflow mlflow_accounts; do
  pg_dump --format=custom --no-owner --file="$target.partial/$database.dump" "$database"
  # a dump that cannot be listed cannot be restored
  pg_restore --list "$target.partial/$database.dump" > /dev/null
done
(cd "$target.partial" && sha256sum ./*.dump > SHA256SUMS)
mv "$target.partial" "$target"
echo "$target"
