#!/bin/sh
# Puts Debian's llama.cpp (CPU build) into a folder: no root needed, and nothing outside the folder is touched.
# Called by scripts/setup.mjs when the machine has no llama-server; works by hand as well.
#
#   usage: scripts/install-engine.sh [TARGET]     (default .engine/llama; afterwards TARGET/bin/llama-server runs)
#   env:   ENGINE_PKGS     packages to take, default "llama.cpp-tools llama.cpp-tools-extra libggml0-backend-rpc": the
#                          server, the rpc-server, and what lets the two talk
#          ENGINE_SUITE    Debian suite, default "forky", the first one with a llama.cpp that speaks our protocol
#          ENGINE_MIRROR   Debian mirror, default the one among this machine's apt sources
#          ENGINE_KEYRING  keyring that signs the suite, default Debian's, else whatever apt trusts here
#
# What holds: the packages are the ones apt verified (signed InRelease, SHA256 of each file); their own C library and
# loader come with them, so the machine's release does not matter; a second run with nothing new only re-reads the index.
set -eu

say() { echo "install-engine: $*" >&2; }
die() { say "$*"; exit 1; }

# Mirrors answer badly now and then, or are caught in the middle of an update: four tries, 2, 4 and 8 s apart.
try() {
  wait_s=2
  until "$@"; do
    [ "$wait_s" -le 8 ] || return 1
    say "failed, trying again in $wait_s s"; sleep "$wait_s"; wait_s=$((wait_s * 2))
  done
}

# First Debian archive among the apt sources, in the one-line and the deb822 form; a list of mirrors counts too.
mirror() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    awk '/^URIs:/ { for (i = 2; i <= NF; i++) print $i }
         /^deb[ \t]/ { for (i = 2; i <= NF; i++) if ($i ~ /:\//) { print $i; break } }' |
    grep -E '^(https?|ftp|file|copy|mirror\+[a-z]+):.*/debian(\.list)?/*$' | head -n 1
}

keyring() {
  for k in "${ENGINE_KEYRING:-}" /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ -n "$k" ] && [ -r "$k" ] && { echo "$k"; return; }
  done
  say "no Debian keyring found (package debian-archive-keyring): relying on the keys that apt trusts here"
}

for tool in apt-get dpkg awk sha256sum; do
  command -v "$tool" >/dev/null || die "needs $tool, so a Debian-like system"
done
suite=${ENGINE_SUITE:-forky}
mirror=${ENGINE_MIRROR:-$(mirror)}
[ -n "$mirror" ] || die "no Debian mirror among the apt sources: set ENGINE_MIRROR"
arch=$(dpkg --print-architecture)
case $arch in
  amd64) triplet=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
  arm64) triplet=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
  *) die "unsupported architecture: $arch" ;;
esac
key=$(keyring)

target=${1:-.engine/llama}
mkdir -p "$target/apt/lists/partial" "$target/apt/cache/archives/partial" "$target/bin"
target=$(cd "$target" && pwd -P)
case $target in *[:\"]*) die "the folder's path must not contain ':' or '\"': $target" ;; esac
if command -v flock >/dev/null; then exec 9>"$target/.lock"; flock 9; fi   # one installer at a time per folder

# An apt of our own: no state, no sources and no pins of the machine, but its proxy settings. An empty status file makes
# apt take every dependency down to libc, which is what makes the folder independent of the machine's release. Hooks are
# cleared because those of container images delete the machine's package cache.
: > "$target/apt/status"
echo "deb [arch=$arch${key:+ signed-by=$key}] $mirror $suite main" > "$target/apt/sources.list"
cat > "$target/apt/apt.conf" <<CONF
Dir::State "$target/apt";
Dir::State::status "$target/apt/status";
Dir::State::Lists "$target/apt/lists";
Dir::Cache "$target/apt/cache";
Dir::Etc::sourcelist "$target/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "$arch";
#clear APT::Architectures;
APT::Architectures { "$arch"; };
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
CONF
apt() { apt-get -qq -c "$target/apt/apt.conf" "$@" 2>"$target/apt/errors" || { cat "$target/apt/errors" >&2; return 1; }; }

try apt update || die "cannot read $mirror, suite $suite"
# patchelf comes along to point programs and libraries at the loader and the libraries in this folder.
# shellcheck disable=SC2086
set -- ${ENGINE_PKGS:-llama.cpp-tools llama.cpp-tools-extra libggml0-backend-rpc} patchelf
uris=$(apt install -y --print-uris "$@") || die "$suite has no $*"
stamp="$target $(echo "$uris" | cut -d' ' -f2- | sort | sha256sum | cut -c1-12)"
root="$target/root-${stamp##* }"

if [ "$(cat "$target/.stamp" 2>/dev/null)" != "$stamp" ] || ! "$target/bin/llama-server" --version >/dev/null 2>&1; then
  rm -rf "$target/apt/cache/archives" "$root"
  mkdir -p "$target/apt/cache/archives/partial" "$root"
  fetch() { apt install -y --download-only "$@" >/dev/null; }
  try fetch "$@" || die "download failed"
  for deb in "$target"/apt/cache/archives/*.deb; do dpkg -x "$deb" "$root"; done

  lib=$root/usr/lib/$triplet
  backends=
  for dir in "$lib"/ggml/backends*; do [ -d "$dir" ] && backends=$dir; done
  [ -n "$backends" ] || die "the packages hold no ggml backends: layout changed?"
  pe() { "$lib/$loader" --library-path "$lib" "$root/usr/bin/patchelf" "$@"; }
  for file in "$lib"/llama/*.so "$lib"/libllama*.so.* "$lib"/libggml*.so.* "$lib"/libmtmd*.so.* "$backends"/*.so; do
    if [ -f "$file" ] && [ ! -L "$file" ]; then
      pe --remove-rpath "$file" # their absolute RUNPATH would win over ours
    fi
  done
  for program in "$root"/usr/bin/llama-* "$root"/usr/bin/*rpc-server "$root/usr/libexec/$triplet/llama/bin"/*; do
    [ -f "$program" ] || continue
    name=${program##*/}
    cp "$program" "$backends/$name" # ggml looks for its CPU backends beside the running program
    pe --set-interpreter "$lib/$loader" "$backends/$name"
    pe --force-rpath --set-rpath "$lib:$lib/llama" "$backends/$name"
    ln -sfn "../${backends#"$target"/}/$name" "$target/bin/$name"
  done
  "$target/bin/llama-server" --version >/dev/null 2>&1 || die "the installed llama-server does not run on this machine"
  echo "$stamp" > "$target/.stamp"
  for old in "$target"/root-*; do [ "$old" = "$root" ] || rm -rf "$old"; done
  for link in "$target"/bin/*; do [ -e "$link" ] || rm -f "$link"; done
fi
rm -rf "$target/apt" # 50 MB of indexes and packages that only a later version would need, and that one has its own
"$target/bin/llama-server" --version 2>&1 | head -n 1
