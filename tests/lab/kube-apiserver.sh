#!/bin/bash
# A real kube-apiserver 1.20.2, built from Debian 12's source package kubernetes, and Debian's etcd 3.4 beside it; its last line is
# the path for KUBE_APISERVER. About ten minutes of one core and 3 GB while it builds, 130 MB kept; a second run takes no time.
#
# Debian ships no kube-apiserver, but its source, a Go that is old enough to build it, and a reflect2 that the API's custom resources
# don't make panic (the vendored 1.0.1 does). All of it is unpacked into the cache and nothing is installed. Sources and packages
# come by apt from the archive named below, with its signatures checked, whatever this machine's own suite is.
#
# The cache is ${REVEILLE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/reveille-lab}/kube; delete it to start afresh.
set -euo pipefail
cache=${REVEILLE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/reveille-lab}/kube
archive=http://deb.debian.org/debian
suite=bookworm
version=1.20.2

say() { echo "kube-apiserver: $*" >&2; }
trap 'say "failed; what was built so far is in $cache/build"' ERR

mkdir -p "$cache"
cache=$(readlink -f "$cache")
exec 9>"$cache/lock"; flock 9
if [ -x "$cache/bin/kube-apiserver" ] && [ -x "$cache/bin/etcd" ]; then
  echo "$cache/bin/kube-apiserver"
  exit 0
fi

build=$cache/build root=$cache/build/root source=$cache/build/gopath/src/k8s.io/kubernetes
rm -rf "$build"; mkdir -p "$build/lists/partial" "$root" "$source" "$cache/bin"
cat > "$build/debian.sources" <<END_OF_SOURCES
Types: deb deb-src
URIs: $archive
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END_OF_SOURCES
apt() {
  apt-get -qq -o "Dir::Etc::sourcelist=$build/debian.sources" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$build/lists" \
    -o APT::Sandbox::User=root "$@" >&2
}

say "fetching the sources"
cd "$build"
apt update
apt source --download-only kubernetes
apt download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server
for deb in ./*.deb; do dpkg-deb -x "$deb" "$root"; done
tar -xzf kubernetes_*.orig.tar.gz -C "$source" --strip-components 1
rm -rf "$source/vendor/github.com/modern-go/reflect2"
cp -r "$root/usr/share/gocode/src/github.com/modern-go/reflect2" "$source/vendor/github.com/modern-go/"

# As the sources' own makefile does it, without the tools it needs besides Go.
export PATH=$root/usr/lib/go-1.19/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=$build/home
export GOCACHE=$build/gocache GOPATH=$build/gopath GO111MODULE=off GOTOOLCHAIN=local GOFLAGS='' CGO_ENABLED=0 GOMAXPROCS=${GOMAXPROCS:-1}
cd "$source"
say "writing the API's description"
nice go build -o "$build/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
described=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg staging/src cmd plugin | grep -v -e _test.go -e sample-apiserver -e code-generator \
  | xargs -n1 dirname | sort -u | sed -e 's|^staging/src/|vendor/|' -e 's|^|k8s.io/kubernetes/|' | paste -sd,)
nice "$build/openapi-gen" --logtostderr -i "$described" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h hack/boilerplate/boilerplate.generatego.txt -r "$build/violations" >&2
say "compiling (ten minutes or more)"
package=k8s.io/kubernetes/vendor/k8s.io/component-base/version
nice go build -trimpath -o "$build/kube-apiserver" \
  -ldflags "-s -w -buildid= -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20" ./cmd/kube-apiserver

cp "$root/usr/bin/etcd" "$cache/bin/etcd"
mv "$build/kube-apiserver" "$cache/bin/kube-apiserver"
rm -rf "$build"
echo "$cache/bin/kube-apiserver"
