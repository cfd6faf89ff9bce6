#!/usr/bin/env bash
# Print the secrets of the platform, of random letters; `create` refuses those that are there, so none is ever replaced:
#   infra/kubernetes/secrets.sh | kubectl create --filename -
set -euo pipefail

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# by pipes, not by arguments: arguments can be read by everyone on the machine
made() { kubectl --namespace raylway create secret generic --dry-run=client --output yaml "$@"; }

made mlflow-server --from-file=postgres_password=<(random) --from-file=admin_password=<(random) --from-file=session_key=<(random)
echo ---
made mlflow-client --from-literal=username=raylway --from-file=password=<(random)
