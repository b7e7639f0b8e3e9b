#!/usr/bin/env bash
# Builds the Kubernetes programs that the tests run, once, into a cache outside of the clone, and prints that folder.
#
#   hack/kubernetes/build.sh                      the control plane: API server, controller manager, scheduler, kubectl
#   hack/kubernetes/build.sh kubelet kube-proxy   just these, in addition to whatever is there already
#
# A program that KUBEBUILDER_ASSETS already has (the name that envtest uses) is not built. A cold build of the control
# plane takes 5 to 6 minutes on 2 cores; a later call takes milliseconds.
set -euo pipefail

version=v1.34.4
built=2026-02-10T12:53:36Z
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/kubernetes/$version
programs=("$@")
if [ ${#programs[@]} -eq 0 ]; then
  programs=(kube-apiserver kube-controller-manager kube-scheduler kubectl)
fi

# Every flag is here: changing one makes Go build everything anew.
stamp() {
  local package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=34 ' "$package" "$version" "$package" "$package"
    printf -- '-X %s.gitCommit=unknown -X %s.gitTreeState=clean -X %s.buildDate=%s ' "$package" "$package" "$package" "$built"
  done
}

mkdir -p "$target"
exec 9>"$target/.lock"
flock 9
for program in "${programs[@]}"; do
  if [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$program" ] || [ -x "$target/$program" ]; then
    continue
  fi
  if ! command -v go >/dev/null; then
    echo "build.sh: $program is not in KUBEBUILDER_ASSETS nor in $target, and there is no Go to build it." >&2
    exit 3
  fi
  echo "build.sh: building $program $version, once" >&2
  (
    cd "$here"
    env CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off nice -n 10 \
      go build -trimpath -buildvcs=false -ldflags "-s -w $(stamp)" -o "$target/.$program.part" "k8s.io/kubernetes/cmd/$program"
  )
  mv "$target/.$program.part" "$target/$program"
done
echo "$target"
