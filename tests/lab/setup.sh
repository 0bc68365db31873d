#!/bin/bash
# Everything the machine tests need that is not Rust: Debian packages, a kernel, the real Ignition, initramfs images and
# a root file system. Run as root on Debian 12 or later; a second run with nothing to do takes a fraction of a second.
#
#   setup.sh packages   install the Debian packages (and cargo, if there is none)
#   setup.sh images     kernel, Ignition and initramfs images, into the cache
#   setup.sh roots      the root file system for cloud-init and for the systemd host (one to two minutes, once), and
#                       NetworkManager, netplan and ifupdown to be laid over it
#   setup.sh slow       what `make slow` needs on top
#   setup.sh bench      the peers the benchmarks are measured against
#
# The cache is ${REVEILLE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/reveille-lab}; delete it to start afresh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${REVEILLE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/reveille-lab}
export DEBIAN_FRONTEND=noninteractive
. /etc/os-release
suite=${VERSION_CODENAME:?this script knows Debian only}

say() { echo "lab: $*"; }
die() { echo "lab: $*" >&2; exit 1; }
apt() { apt-get -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root -qq "$@"; }

# The package lists are refreshed at most once a run, and only when something is missing.
fresh_lists() { [ -n "${lists_done:-}" ] || { apt update; lists_done=1; }; }

install_from() {
  local wanted missing
  wanted=$(sed 's/#.*//' "$1")
  missing=$( { dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $wanted 2>/dev/null || true; } \
    | awk '$1=="ii"{print $2}' | sort -u | comm -13 - <(tr -s ' ' '\n' <<<"$wanted" | sed '/^$/d' | sort -u))
  [ -n "$missing" ] || return 0
  [ "$(id -u)" = 0 ] || die "these packages are missing and only root can install them:" $missing
  say "installing" $missing
  fresh_lists
  apt install -y --no-install-recommends $missing >/dev/null
}

# A server that a package would start by itself has no business on the machine that runs the tests.
without_services() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e $policy ]; then "$@"; return; fi
  printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy
  local rc=0; "$@" || rc=$?
  rm -f $policy; return $rc
}

# Debian 12's own cargo is older than the edition this workspace is written in, so rustup is the only way there.
need_cargo() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
  found=$(PATH=$HOME/.cargo/bin:$PATH cargo --version 2>/dev/null | awk '{print $2}') || true
  [ -n "$found" ] && printf '%s\n' "$wanted" "$found" | sort -CV && return 0
  say "installing Rust with rustup, because cargo here is ${found:-missing} and $wanted or later is needed"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal -c clippy -c rustfmt --no-modify-path
}

packages() { without_services install_from "$here/packages.txt"; need_cargo; }

# A deb's content without installing it: `unpack PACKAGE DIRECTORY`.
unpack() {
  mkdir -p "$cache/debs" "$2.part"
  ls "$cache/debs/$1"_*.deb >/dev/null 2>&1 || { fresh_lists; (cd "$cache/debs" && apt download "$1"); }
  dpkg-deb -x "$cache/debs/$1"_*.deb "$2.part"
  rm -rf "$2"; mv "$2.part" "$2"
}

images() {
  mkdir -p "$cache"; exec 9>"$cache/images.lock"; flock 9
  local stamp; stamp=$(cat "$here/setup.sh" "$here/node-init" "$here/bastion-init" "$here/udhcpc-script" | sha256sum | cut -c1-16)
  [ "$(cat "$cache/images.stamp" 2>/dev/null)" = "$stamp" ] && return 0
  say "building kernel and initramfs images in $cache"
  local kernel
  if [ ! -f "$cache/vmlinuz" ]; then
    fresh_lists
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}')
    unpack "$kernel" "$cache/kernel"
    depmod -b "$cache/kernel" "$(ls "$cache/kernel/lib/modules")"
    cp "$cache"/kernel/boot/vmlinuz-* "$cache/vmlinuz"
  fi
  [ -d "$cache/ignition" ] || unpack ignition "$cache/ignition"
  # Installed it would take the place of whatever keeps this machine's clock.
  [ -d "$cache/chrony" ] || unpack chrony "$cache/chrony"
  base_image "$cache/base.img"
  ignition_image "$cache/ignition.img"
  bastion_image "$cache/bastion.img"
  disk "$cache/kernel/lib/modules" "$cache/modules.ext4"
  echo "$stamp" > "$cache/images.stamp"
}

# busybox, the network driver and an init that takes its orders from the kernel command line.
base_image() {
  local root; root=$(mktemp -d); chmod 755 "$root"
  busybox_root "$root" virtio_pci virtio_net
  mkdir -p "$root"/{root,usr/bin,usr/sbin,usr/share/udhcpc}
  install -m 755 "$here/node-init" "$root/init"
  install -m 755 "$here/udhcpc-script" "$root/usr/share/udhcpc/default.script"
  pack "$root" "$1"
}

# What lays out the bastion's root from its disks and hands over to systemd.
bastion_image() {
  local root; root=$(mktemp -d); chmod 755 "$root"
  busybox_root "$root" virtio_pci virtio_blk virtio_net overlay
  install -m 755 "$here/bastion-init" "$root/init"
  pack "$root" "$1"
}

# `busybox_root DIRECTORY MODULE...`
busybox_root() {
  local root=$1 version file module; shift
  version=$(ls "$cache/kernel/lib/modules")
  mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp} "$root/lib/modules/$version"
  cp /bin/busybox "$root/bin/"
  for file in $(/bin/busybox --list | grep -vx busybox); do ln -s busybox "$root/bin/$file"; done
  for module in "$@"; do
    modprobe -d "$cache/kernel" -S "$version" --show-depends $module | awk '/^insmod/{print $2}'
  done | sort -u | while read -r file; do
    module=${file#"$cache/kernel/"}; mkdir -p "$root/$(dirname "$module")"; cp "$file" "$root/$module"
  done
  cp "$cache/kernel/lib/modules/$version"/modules.{order,builtin} "$root/lib/modules/$version/"
  depmod -b "$root" "$version" 2>&1 | grep -v modules.builtin.modinfo >&2 || true
}

# The second initramfs, laid over the first by the kernel: Debian's ignition binary and what its stages call.
ignition_image() {
  local root binary file; root=$(mktemp -d); chmod 755 "$root"
  binary=$cache/ignition/usr/lib/dracut/modules.d/30ignition/ignition
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,sysroot} "$root"/sysroot.new/{etc/selinux,usr/lib,var,run,tmp,root,home}
  cp "$binary" "$root/usr/bin/"
  cp /usr/sbin/{useradd,usermod,groupadd} "$root/usr/sbin/"
  for file in "$binary" /usr/sbin/useradd; do ldd "$file" | awk '/=> \//{print $3} /ld-linux/{print $1}'; done | sort -u \
    | while read -r file; do mkdir -p "$root$(dirname "${file#/usr}")"; cp -L "$file" "$root${file#/usr}"; done
  # Debian builds ignition to relabel always: it wants an SELinux policy name and a `setfiles`, disabled or not.
  printf 'SELINUX=disabled\nSELINUXTYPE=targeted\n' > "$root/sysroot.new/etc/selinux/config"
  printf '#!/bin/sh\ncat >/dev/null\n' > "$root/usr/bin/setfiles"; chmod 755 "$root/usr/bin/setfiles"
  cp /etc/os-release "$root/usr/lib/"; cp /etc/os-release "$root/sysroot.new/usr/lib/"
  for file in passwd group shadow gshadow; do : > "$root/sysroot.new/etc/$file"; done
  pack "$root" "$1"
}

pack() {
  (cd "$1" && find . | sort | cpio -o -H newc --quiet -R 0:0) | gzip -1n > "$2.part"
  mv "$2.part" "$2"; rm -rf "$1"
}

# A read-only disk with what a directory holds: `disk DIRECTORY FILE`.
disk() {
  rm -f "$2.part"
  mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$1" "$2.part" "$(($(du -sm --apparent-size "$1" | cut -f1) * 5 / 4 + 64))M" >/dev/null
  mv "$2.part" "$2"
}

# Where this machine's own packages come from.
debian_sources() {
  local file
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ ! -s $file ] || { echo $file; return; }; done
}

# One Debian root serves two stories: cloud-init runs in it, and the bastion's virtual machine boots systemd from it.
roots() {
  mkdir -p "$cache"; exec 8>"$cache/roots.lock"; flock 8
  local wanted=systemd-sysv,udev,dbus,iproute2,kmod,cloud-init,python3,ipxe,nftables
  [ "$(cat "$cache/root.stamp" 2>/dev/null)" = "$suite $wanted disk" ] && { managers; return; }
  say "building a $suite root file system in $cache (one to two minutes)"
  rm -rf "$cache/root.part"
  mmdebstrap --quiet --mode=root --variant=minbase --include=$wanted "$suite" "$cache/root.part" $(debian_sources)
  rm -rf "$cache/root"; mv "$cache/root.part" "$cache/root"
  disk "$cache/root" "$cache/root.ext4"
  echo "$suite $wanted disk" > "$cache/root.stamp"
  managers
}

# Programs that would take over the network of whatever they are installed on: unpacked with what they need beyond the Debian
# root, to be laid over it. Debian's older packages still have a /lib of their own, hence the links.
managers() {
  local wanted="network-manager netplan.io ifupdown nftables systemd-resolved" stamp package
  stamp="$(cat "$cache/root.stamp"), $wanted"
  [ "$(cat "$cache/managers.stamp" 2>/dev/null)" = "$stamp" ] && return 0
  say "unpacking $wanted"
  fresh_lists
  rm -rf "$cache/managers.part"
  mkdir -p "$cache/managers.part"/usr/{bin,sbin,lib,lib64}
  for package in bin sbin lib lib64; do ln -s "usr/$package" "$cache/managers.part/$package"; done
  for package in $(apt-get -o "Dir::State::status=$cache/root/var/lib/dpkg/status" --no-install-recommends -s install $wanted \
      | awk '/^Inst/{print $2}'); do
    ls "$cache/debs/${package}"_*.deb >/dev/null 2>&1 || (mkdir -p "$cache/debs"; cd "$cache/debs" && apt download "$package")
    dpkg-deb --fsys-tarfile "$cache/debs/${package}"_*.deb | tar -x -C "$cache/managers.part" --keep-directory-symlink
  done
  rm -rf "$cache/managers"; mv "$cache/managers.part" "$cache/managers"
  echo "$stamp" > "$cache/managers.stamp"
}

# Signed boot loaders, the Debian installer's arm64 kernel with the GRUB that belongs to it, and a live root.
slow() {
  without_services install_from "$here/slow-packages.txt"
  mkdir -p "$cache"; exec 7>"$cache/slow.lock"; flock 7
  [ -d "$cache/shim" ] || unpack shim-signed "$cache/shim"
  [ -d "$cache/grub" ] || unpack grub-efi-amd64-signed "$cache/grub"
  [ -d "$cache/arm64" ] || unpack "debian-installer-${VERSION_ID}-netboot-arm64" "$cache/arm64"
  live
}

# One Debian is both: it makes the dracut initramfs that fetches a root over HTTP, and becomes that root. The agent and its
# unit are what is tested, so they are only pointed at; the test puts them into `/reveille`.
live() {
  local stamp version part=$cache/live.part root=$cache/live.part/root etc=$cache/live.part/root/etc/systemd/system
  version=$(ls "$cache/kernel/lib/modules")
  stamp=$( { declare -f live; cat "$here/live-root.service"; echo "$suite $version"; } | sha256sum | cut -c1-16)
  [ "$(cat "$cache/live/stamp" 2>/dev/null)" = "$stamp" ] && return 0
  say "building a live root and its initramfs in $cache (one to two minutes)"
  rm -rf "$part"; mkdir -p "$part"
  mmdebstrap --quiet --mode=root --variant=minbase \
    --include=systemd-sysv,udev,dbus,iproute2,kmod,dracut,dracut-live,dracut-network,procps,iputils-ping,isc-dhcp-client,curl,dmsetup,zstd \
    "$suite" "$root" $(debian_sources)
  cp -a "$cache/kernel/lib/modules" "$root/usr/lib/"
  # dracut's scripts read through /dev/fd, which is a link into /proc.
  unshare --mount sh -ec 'mount -t proc proc "$1/proc"; exec chroot "$@"' sh "$root" \
    dracut --quiet --no-hostonly --no-hostonly-cmdline --compress 'zstd -3 -q' \
    --add 'network-legacy livenet dmsquash-live' --kver "$version" /boot/initramfs.img >"$part/dracut.log" 2>&1 \
    || { cat "$part/dracut.log" >&2; die "dracut failed"; }
  rm "$part/dracut.log"
  install -m 644 "$root/boot/initramfs.img" "$part/"
  install -m 644 "$here/live-root.service" "$etc/"
  mkdir -p "$etc/multi-user.target.wants"
  ln -s /reveille/reveille-agent.service "$etc/"
  ln -s ../live-root.service ../reveille-agent.service "$etc/multi-user.target.wants/"
  ln -s /reveille/reveille-agent "$root/usr/bin/"
  mksquashfs "$root" "$part/root.squashfs" -quiet -no-progress -comp zstd -Xcompression-level 3 -no-xattrs -wildcards \
    -e 'boot/*' 'dev/*' 'usr/lib/modules/*' 'usr/share/doc/*' 'usr/share/man/*' 'usr/share/locale/*' 'var/lib/apt/lists/*' 'var/cache/apt/*'
  rm -rf "$root" "$cache/live"
  echo "$stamp" > "$part/stamp"; mv "$part" "$cache/live"
}

# Only one TFTP server of Debian's may be installed at a time, so the peers run from where they were unpacked.
bench() {
  local peer
  without_services install_from "$here/bench-packages.txt"
  mkdir -p "$cache/peers"
  for peer in tftpd-hpa atftpd coredhcp-server; do
    [ -d "$cache/peers/$peer" ] || unpack "$peer" "$cache/peers/$peer"
  done
}

[ $# -gt 0 ] || set -- packages images roots
for part in "$@"; do
  case $part in packages | images | roots | slow | bench) $part ;; *) die "there is no part called $part" ;; esac
done
