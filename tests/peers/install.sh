#!/bin/sh
# Installs the real mail programs that tests/peers talks to. Debian 12 or newer, as root; safe to repeat.
#
#   apt:       postfix (brings smtp-source and smtp-sink), swaks, libnet-ssleay-perl (its TLS) and
#              libio-socket-inet6-perl (its IPv6), msmtp, openssl, testssl.sh and bsdextrautils (its hexdump), haproxy
#              (the PROXY protocol), stunnel4 (bench), jq (the examples of docs/audit.md); nftables, iproute2, util-linux
#              and procps (tests/gateway), systemd and keepalived (tests/deploy), prometheus (tests/metrics),
#              postgresql, rsyslog with its TLS, gcc and libc6-dev (tests/store).
#   unpacked:  exim4, opensmtpd and sendmail conflict with postfix, so their packages are only unpacked, together
#              with the shared libraries that the machine lacks, into $SMTPPROXY_PEERS (default: <repo>/.peers).
#              OpenSMTPD 6 cannot do TLS with OpenSSL 3 (its issue 1171), so Debian 12's comes from backports.
#   by pip:    aiosmtpd==1.4.4 is a test dependency of the project and is not installed here.
#
# No service is started or enabled, and no cluster of PostgreSQL made. The unpacked programs lose their setuid bits: the
# tests start them as root.
set -eu

repo=$(cd "$(dirname "$0")/../.." && pwd)
tree=${SMTPPROXY_PEERS:-$repo/.peers}
installed="postfix swaks libnet-ssleay-perl libio-socket-inet6-perl msmtp openssl testssl.sh bsdextrautils haproxy stunnel4 jq"
installed="$installed nftables iproute2 util-linux procps systemd keepalived postgresql prometheus rsyslog rsyslog-openssl gcc libc6-dev"
unpacked="exim4-daemon-light exim4-base opensmtpd sendmail-bin sendmail-base"
stamp=$tree/.complete
programs="usr/sbin/exim4 usr/sbin/smtpd usr/libexec/sendmail/sendmail"
export DEBIAN_FRONTEND=noninteractive

have() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

unpacked_already() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$unpacked, 2" ] || return 1
    # The libraries of the machine may have changed since.
    for program in $programs; do
        ! LD_LIBRARY_PATH=$tree/usr/lib/$(uname -m)-linux-gnu ldd "$tree/$program" | grep -q 'not found' || return 1
    done
}

missing=
for package in $installed; do have "$package" || missing="$missing $package"; done
[ -z "$missing" ] && unpacked_already && { echo "peers: everything is there"; exit 0; }
[ "$(id -u)" = 0 ] || { echo "peers: run me as root" >&2; exit 1; }

policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d/smtpproxy-tests.conf
work=$(mktemp -d)
ours=
cluster=
cleanup() { rm -rf "$work" ${cluster:+"$cluster"}; [ -z "$ours" ] || rm -f "$policy"; }
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

apt() { apt-get -o DPkg::Lock::Timeout=120 -o APT::Sandbox::User=root -qq "$@"; }
candidate() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'; }
for package in $installed $unpacked; do candidate "$package" || { apt update; break; }; done

if [ -n "$missing" ]; then
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
    # The tests of PostgreSQL make clusters of their own (tests/store/pg_rig.py).
    if [ ! -e "$clusters" ]; then
        cluster=$clusters
        mkdir -p "${clusters%/*}"
        echo "create_main_cluster = false" >"$clusters"
    fi
    # A package list that has grown old names files that the mirror no longer has.
    # shellcheck disable=SC2086
    apt install -y --no-install-recommends $missing >"$work/log" 2>&1 \
        || { apt update && apt install -y --no-install-recommends $missing >"$work/log" 2>&1; } \
        || { cat "$work/log" >&2; exit 1; }
fi

# The shared libraries that are not installed, and those that they need in turn.
libraries() {
    apt-cache depends --important "$@" \
        | sed -n 's/^ *\(PreDepends\|Depends\): \(lib[a-z0-9.+-]*\)$/\2/p' | grep -v -- '-perl$' | sort -u
}
wanted=$unpacked
next=$unpacked
while [ -n "$next" ]; do
    # shellcheck disable=SC2086
    found=$(libraries $next)
    next=
    for package in $found; do
        case " $wanted " in *" $package "*) continue ;; esac
        have "$package" || { wanted="$wanted $package"; next="$next $package"; }
    done
done

cd "$work"
# shellcheck disable=SC2086
apt download $wanted || { apt update && apt download $wanted; }
case $(echo opensmtpd_*.deb) in opensmtpd_6*)
    # Lists of its own: the machine's sources stay as they are.
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $codename" | head -n 1)
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] ${mirror:?the mirror is not known} $codename-backports main" >"$work/backports.list"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    backports() {
        apt -o Dir::Etc::SourceList="$work/backports.list" -o Dir::Etc::SourceParts=- \
            -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" "$@"
    }
    rm opensmtpd_6*.deb
    backports update
    backports download opensmtpd
esac
rm -rf "$tree"
mkdir -p "$tree"
for deb in ./*.deb; do dpkg -x "$deb" "$tree"; done
find "$tree" -type f -perm /6000 -exec chmod ug-s {} +
rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale"
echo "$unpacked, 2" >"$stamp"
unpacked_already || { echo "peers: the unpacked programs lack a library" >&2; rm "$stamp"; exit 1; }
echo "peers: installed:$missing; unpacked into $tree: $wanted"
