#!/bin/sh
# preStop of a worker node: tell Ray that this node goes in SECONDS, then leave training so long to seal a checkpoint and move away.
#   drain-node SECONDS
# Ray's preemption watcher sees the notice within five seconds. `ray drain-node` is a hidden command of Ray 2.60, so it stands here alone.
set -eu
seconds="${1:?how many seconds the node has left}"
ray drain-node --address "${RAY_ADDRESS:?the address of the cluster, which KubeRay sets}" \
  --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is being taken away" --deadline-remaining-seconds "$seconds"
# what trains here leaves by itself; its process carries this name while it is there
while [ "$seconds" -gt 0 ] && pgrep -f 'ray::.*RayTrainWorker' > /dev/null; do
  sleep 1
  seconds=$((seconds - 1))
done
