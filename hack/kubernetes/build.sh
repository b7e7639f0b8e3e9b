#!/usr/bin/env bash
# Builds the Kubernetes programs of tests and the local cluster into a cache outside the clone, and prints its path.
#
#   hack/kubernetes/build.sh                      the control plane: API server, controller manager, scheduler, kubectl
#   hack/kubernetes/build.sh kubelet helm         only these, in addition to those in the cache
#   hack/kubernetes/build.sh --missing NAME...    builds nothing; prints the programs that would be built
#   hack/kubernetes/build.sh --has-go             builds nothing; exits with 3 if there is no suitable Go
#
# Programs that KUBEBUILDER_ASSETS has (the variable of envtest) are not built. The first build of the control plane takes
# 5 to 6 minutes on 2 cores, the other programs about 3 more; a later call takes milliseconds.
set -euo pipefail

version=v1.34.4
helm_version=v3.19.5
built=2026-02-10T12:53:36Z
oldest_go=1.24
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/kubernetes/$version
only_list=
if [ "${1:-}" = --missing ]; then
  only_list=yes
  shift
fi
programs=("$@")
if [ ${#programs[@]} -eq 0 ]; then
  programs=(kube-apiserver kube-controller-manager kube-scheduler kubectl)
fi

# All flags are set here; after a change Go builds everything again.
stamp() {
  local package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=34 ' "$package" "$version" "$package" "$package"
    printf -- '-X %s.gitCommit=unknown -X %s.gitTreeState=clean -X %s.buildDate=%s ' "$package" "$package" "$package" "$built"
  done
}

# source_of PROGRAM: sets its module, package and link flags, and made_of: its source files, if not only $version.
source_of() {
  made_of=()
  case $1 in
  helm)
    module=$here/helm package=helm.sh/helm/v3/cmd/helm
    flags="-X helm.sh/helm/v3/internal/version.version=$helm_version"
    made_of=("$here/helm/go.mod")
    ;;
  coredns)
    module=$here/coredns package=. flags=
    made_of=("$here/coredns/go.mod" "$here/coredns/main.go")
    ;;
  karpenter)
    module=$here/karpenter package=sigs.k8s.io/karpenter/kwok flags=
    made_of=("$here/karpenter/go.mod")
    ;;
  pause | logging-proxy | probe)
    module=$here package=./$1 flags=
    made_of=("$here/$1/main.go")
    ;;
  *)
    module=$here package=k8s.io/kubernetes/cmd/$1
    flags=$(stamp)
    ;;
  esac
}

# digest: a checksum of made_of; if it changes, the program is built again.
digest() { if [ ${#made_of[@]} -gt 0 ]; then cat "${made_of[@]}" | cksum; fi; }

is_there() {
  [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$1" ] ||
    { [ -x "$target/$1" ] && [ "$(cat "$target/.$1.made-of" 2>/dev/null || true)" = "$(digest)" ]; }
}

# find_go: prints the path of a Go that is new enough. Distributions often have an older one.
find_go() {
  local go found
  for go in "$(command -v go || true)" /usr/local/go/bin/go; do
    [ -x "$go" ] || continue
    found=$(GOTOOLCHAIN=local "$go" env GOVERSION)
    if [ "$(printf '%s\n' "$oldest_go" "${found#go}" | sort -V | head -n 1)" = "$oldest_go" ]; then
      echo "$go"
      return
    fi
  done
  return 1
}

if [ -n "$only_list" ]; then
  for program in "${programs[@]}"; do
    source_of "$program"
    is_there "$program" || echo "$program"
  done
  exit
fi

if [ "${1:-}" = --has-go ]; then
  find_go >/dev/null || exit 3
  exit
fi

mkdir -p "$target"
exec 9>"$target/.lock"
flock 9
for program in "${programs[@]}"; do
  source_of "$program"
  if is_there "$program"; then
    continue
  fi
  if ! go=$(find_go); then
    echo "build.sh: $program is neither in KUBEBUILDER_ASSETS nor in $target. To build it, install Go $oldest_go or newer" \
      "from https://go.dev/dl, on PATH or in /usr/local/go." >&2
    exit 3
  fi
  echo "build.sh: building $program" >&2
  (
    cd "$module"
    env CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off nice -n 10 \
      "$go" build -trimpath -buildvcs=false -ldflags "-s -w $flags" -o "$target/.$program.part" "$package"
    if [ "$program" = karpenter ]; then # its CRDs are of the same release
      sources=$("$go" list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/karpenter)
      install -m 644 -D -t "$target/karpenter-crds" "$sources"/pkg/apis/crds/*.yaml "$sources"/kwok/apis/crds/*.yaml
    fi
  )
  mv "$target/.$program.part" "$target/$program"
  digest >"$target/.$program.made-of"
done
echo "$target"
