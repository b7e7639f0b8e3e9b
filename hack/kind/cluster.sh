#!/bin/sh
# Creates a kind cluster with Tonnage, for people who have docker. Needs docker, kind, kubectl, helm and Python 3.11.
#
#   hack/kind/cluster.sh up      build the images, create the cluster if there is none, install or upgrade the chart
#   hack/kind/cluster.sh down    delete the cluster
#
# KIND_CLUSTER_NAME sets the cluster's name (default: tonnage). CI has no docker and tests this script only with stubs.
set -eu
cd "$(dirname "$0")/../.."

name=${KIND_CLUSTER_NAME:-tonnage}
context=kind-$name

log() { printf '%s\n' "kind: $*" >&2; }

# require PROGRAM…: exits if one is not installed; the message lists all that are missing.
require() {
    missing=
    for program in "$@"; do
        command -v "$program" >/dev/null || missing="$missing $program"
    done
    if [ -n "$missing" ]; then
        log "not installed:$missing. Install them, or use \`make cluster-up\` on Debian as root."
        exit 1
    fi
}

exists() { kind get clusters 2>/dev/null | grep -qx "$name"; }

up() {
    require docker kind kubectl helm python3
    if ! docker info >/dev/null 2>&1; then
        log "docker is not running. Start it, then try again."
        exit 1
    fi
    # One line per image: target, name, archive. The archives' folder is named by a hash of their inputs.
    images=$(python3 hack/images/build.py --engine docker --format lines)
    key=$(printf '%s\n' "$images" | sed -n '1s|.*/\([^/]*\)/[^/]*$|\1|p')
    if exists; then
        log "using the cluster $name"
        kind export kubeconfig --name "$name"
    else
        kind create cluster --name "$name" --wait 120s
    fi
    printf '%s\n' "$images" | while read -r _ image archive; do
        log "loading $image into the node"
        kind load image-archive "$archive" --name "$name"
    done
    # /dev/shm of a kind node has only 64 MiB; /run is a tmpfs without such a limit. The annotations restart the pods if the
    # images have changed, because their tags stay the same.
    helm upgrade --install tonnage charts/tonnage --kube-context "$context" \
        --namespace tonnage-system --create-namespace --wait --timeout 5m \
        --set cache.memory.hostPath=/run/tonnage \
        --set-string "controller.podAnnotations.images=$key" --set-string "webhook.podAnnotations.images=$key"
    kubectl --context "$context" get pods --namespace tonnage-system
    cat <<END

Tonnage runs in the kind cluster $name (context $context). Set bucket, prefix, endpoint and keys in
examples/quickstart.yaml, then:

  kubectl --context $context apply -f examples/quickstart.yaml
  kubectl --context $context get mw,pods -n quickstart -w

\`make kind-up\` again upgrades Tonnage to the current sources; \`make kind-down\` deletes the cluster.
END
}

down() {
    require kind
    kind delete cluster --name "$name"
}

case ${1:-} in
up | down) "$1" ;;
*)
    echo "usage: hack/kind/cluster.sh up|down" >&2
    exit 2
    ;;
esac
