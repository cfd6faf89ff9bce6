#!/usr/bin/env bash
# Make the secrets that compose.yaml reads, each a file of random letters that only you can read; those there are left as they are.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p secrets
chmod 711 secrets
for name in ray_token postgres_password mlflow_admin_password mlflow_session_key mlflow_client_password object_store_password grafana_password; do
  if [ ! -e "secrets/$name" ]; then
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
    # containers run as other users than you, and compose mounts a file with the rights it has; the folder keeps out who does not know the names
    chmod 444 "secrets/$name"
    echo "made infra/docker/secrets/$name"
  fi
done
