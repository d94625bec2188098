"""What the emulated board's system consists of besides packages, as text.

Each change here makes another image. The first process replaces systemd: it mounts, names the
host, hands files to their owners, brings the network up and starts sshd. Then it waits to be told
to restart.
"""

#: In order of insertion: each needs those before it (linux/drivers/virtio/Kconfig).
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "rng-core",
    "virtio-rng",
)

_INIT = """\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t tmpfs -o mode=755 run /run
/bin/busybox mount -t tmpfs -o mode=1777 tmp /tmp
/bin/busybox --install -s /usr/bin 2>/dev/null
mkdir -p /dev/pts /run/sshd
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
# The user's own group, as systemd delegates one: limits below it are the user's to set. Who is
# logged in is one level deeper, for a group that hands on a controller holds no process.
cd /sys/fs/cgroup
mkdir -p edge/login
echo +memory >cgroup.subtree_control
echo +memory >edge/cgroup.subtree_control
chown 1000:1000 edge edge/cgroup.procs edge/cgroup.subtree_control
chown 1000:1000 edge/login edge/login/cgroup.procs
cd /
# Users may count their own instructions, which Debian's kernel forbids at its default, 3.
echo 2 >/proc/sys/kernel/perf_event_paranoid
hostname -F /etc/hostname
# mke2fs copies the owner of each file, who is whoever built the image.
chown -R 0:0 /etc /usr /var
chown -R 1000:1000 /home/edge
ifconfig lo 127.0.0.1 up
# The address that QEMU's user network forwards to.
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
sh -c 'echo $$ >/sys/fs/cgroup/edge/login/cgroup.procs; exec /usr/sbin/sshd'
# The user may restart the board, as logind lets whoever sits at one.
mkfifo -m 600 /run/restart
chown 1000:1000 /run/restart
echo edgeopt-board ready >/dev/console
trap "" INT
while :; do
  read -r asked </run/restart || continue
  # Connections end now: a kernel that restarts closes none.
  killall sshd
  sync
  sleep 1
  reboot -f
done
"""

#: The first process of the initramfs, which finds the disk; {modules} are in order.
FIRST = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for m in {modules}; do $b insmod /modules/$m.ko; done
i=0
while [ ! -b /dev/vda ] && [ $i -lt 500 ]; do $b usleep 20000; i=$((i+1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /disk || exec $b sh
$b umount /proc
$b umount /sys
$b mount --move /dev /disk/dev
exec $b switch_root /disk /sbin/edgeopt-init
"""

#: Folders that no package brings.
FOLDERS = (
    *("dev", "proc", "sys", "tmp", "run", "mnt", "root"),
    *("var/empty", "var/log", "etc/ssh", "home/edge/.ssh"),
)

#: Files by path, without the leading slash.
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "sshd:x:100:65534::/run/sshd:/bin/false\n"
        "edge:x:1000:1000:edge:/home/edge:/bin/sh\n"
    ),
    "etc/group": "root:x:0:\nedge:x:1000:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nedge:*:19000:0:99999:7:::\nsshd:!:19000::::::\n",
    "etc/shells": "/bin/sh\n",
    "etc/hostname": "edgeopt-board\n",
    "etc/hosts": "127.0.0.1 localhost edgeopt-board\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/ssh/sshd_config": (
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PermitRootLogin no\n"
        "PasswordAuthentication no\n"
        "UsePAM no\n"
        "UseDNS no\n"
        "LoginGraceTime 300\n"
        "Subsystem sftp internal-sftp\n"
    ),
    "usr/sbin/edgeopt-init": _INIT,
    # busybox's own signals the first process, which only root may.
    "usr/sbin/reboot": "#!/bin/sh\necho now >/run/restart\n",
}
