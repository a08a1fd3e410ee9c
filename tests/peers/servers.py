"""The real servers: Postfix, Exim, OpenSMTPD, Sendmail, aiosmtpd and smtp-sink, each as a context manager.

Each accepts every recipient at *.example for delivery into its own directory and relays nothing. Their
handling of what comes over the wire is what Debian ships: only what delivery, logging and the absence of DNS
need is set. Postfix deliberately keeps its default for bare newlines, which ends a message at LF.LF.

Each but smtp-sink offers STARTTLS if it is given an identity, or is in TLS from the first octet (`implicit`).
What it takes and refuses of TLS is what Debian ships as well.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.peers import PeerError, PeerUnavailable
from tests.peers.mail import PIPE, Mail, make_store, read_dump, read_fields, read_piped
from tests.peers.process import (
    HOST,
    STEP,
    TREE,
    USERS,
    Program,
    Scratch,
    find,
    find_unpacked,
    free_port,
    need_root,
    private_files,
    private_libraries,
)
from tests.peers.tls import Identity

NOBODY = 65534


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Server(ABC):
    """A server on loopback. Entering it starts it; leaving it ends it and removes what it stored.

    Where it has addresses of its own (in a network namespace, tests/gateway), `at` says them: Postfix and Exim listen
    there, on port 25.
    """

    name: ClassVar[str]
    hostname: ClassVar[str]  # what its certificate is for
    offers: ClassVar[frozenset[str]]  # the EHLO keywords it is configured to offer, without TLS
    greeting: ClassVar[str]  # what its greeting must contain, so that nobody else on the port is taken for it
    newline: ClassVar[bytes] = b"\n"
    owner: ClassVar[int] = NOBODY
    seconds: ClassVar[float] = 20.0

    def __init__(
        self,
        identity: Identity | None = None,
        *,
        implicit: bool = False,
        settings: str = "",
        at: Sequence[str] = (),
    ) -> None:
        """`settings`: what its configuration file says besides; only Postfix looks at it."""
        self.identity = identity
        self.implicit = implicit
        self.settings = settings
        self.hosts = tuple(at) or (HOST,)
        self.host = self.hosts[0]
        self.port = 25 if at else 0
        self._alone = bool(at)
        self._program: Program | None = None

    @property
    def offered(self) -> frozenset[str]:
        """The EHLO keywords of this one."""
        return self.offers | {"STARTTLS"} if self.identity is not None and not self.implicit else self.offers

    @abstractmethod
    def start(self, scratch: Scratch) -> Program:
        """Configures and starts the server on `self.port`; mails go to `self.store`."""

    def __enter__(self) -> Self:
        for attempt in (1, 2, 3):  # somebody else may take the port before the server does
            self.port = self.port if self._alone else free_port()
            self._scratch = Scratch(self.name)
            self.store = make_store(self._scratch.path / "store", self.owner)
            try:
                self._program = self.start(self._scratch)
                self._program.await_greeting(self.port, self.greeting, self.seconds, tls=self.implicit, host=self.host)
            except PeerError:
                self.stop()
                if attempt == 3 or self._program is None:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()
        self._scratch.remove()

    @property
    def pids(self) -> frozenset[int]:
        return self._program.pids if self._program is not None else frozenset()

    def paths(self) -> list[Path]:
        """The stored mails, oldest first; a file is complete when it gets here."""
        return sorted((self.store / "new").iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def read(self, path: Path) -> Mail:
        return read_piped(path)

    def mails(self) -> list[Mail]:
        found = [self.read(path) for path in self.paths()]
        return [Mail(mail.sender, mail.recipients, mail.content, self.newline) for mail in found]

    def wait_for(self, n: int, seconds: float, to: str | None = None) -> list[Mail]:
        """The mails (those to the recipient `to`) once there are at least `n`; an error in the end."""
        deadline = time.monotonic() + seconds
        while True:
            mails = [mail for mail in self.mails() if to is None or to in mail.recipients]
            if len(mails) >= n:
                return mails
            if time.monotonic() > deadline:
                raise PeerError(f"{self.name} has {len(mails)} of {n} mails after {seconds} s:\n{self.log()}")
            time.sleep(STEP)

    def log(self) -> str:
        """All that the server logged."""
        logs = sorted(filter(Path.is_file, self._scratch.path.glob("log*")))
        return "".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in logs)

    def secure(self, scratch: Scratch, settings: str, owner: int = 0) -> str:
        """`settings` with the paths of the identity's files, {chain} and {key}; nothing without an identity."""
        if self.identity is None:
            return ""
        chain, key = self.identity.write(scratch.path, owner=owner)
        return settings.format(chain=chain, key=key)

    def pipe(self, scratch: Scratch) -> Path:
        """A program that stores the mail on its standard input; its arguments are the envelope."""
        return scratch.write("deliver", PIPE.format(store=self.store), 0o755)


def start_postfix(
    scratch: Scratch, port: int, settings: str, *names: str, hosts: Sequence[str] = (HOST,), services: str = ""
) -> Program:
    """A private Postfix: its own configuration, queue, data and log; it finds the hosts `names` here.

    `services`: what its master.cf says besides.
    """
    postfix = find("postfix")
    need_root("postfix")
    config = scratch.mkdir("config")
    scratch.mkdir("queue")
    os.chown(scratch.mkdir("data"), *postfix_ids())
    said = {line.partition("=")[0].strip() for line in settings.splitlines()}
    main = POSTFIX_MAIN.format(dir=scratch.path).splitlines(keepends=True)
    settings = "".join(line for line in main if line.partition("=")[0].strip() not in said) + settings
    scratch.write("config/main.cf", settings)
    inet = "".join(f"{printable(host)}:{port} inet n - n - - smtpd\n" for host in hosts)
    scratch.write("config/master.cf", inet + POSTFIX_MASTER + services)
    return Program(
        [postfix, "-c", str(config), "start-fg"], log=scratch.path / "log", binds=private_files(scratch, *names)
    )


def printable(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def postfix_ids() -> tuple[int, int]:
    entry = pwd.getpwnam("postfix")
    return entry.pw_uid, entry.pw_gid


POSTFIX_MAIN = """\
compatibility_level = 3.6
myhostname = postfix.dst.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
queue_directory = {dir}/queue
data_directory = {dir}/data
maillog_file = {dir}/log.mail
maillog_file_prefixes = {dir}
alias_maps =
alias_database =
local_header_rewrite_clients =
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
notify_classes =
"""
POSTFIX_MASTER = """\
pickup    unix  n - n 60  1 pickup
cleanup   unix  n - n -   0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n -   - trivial-rewrite
bounce    unix  - - n -   0 bounce
defer     unix  - - n -   0 bounce
trace     unix  - - n -   0 bounce
verify    unix  - - n -   1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n -   - proxymap
proxywrite unix - - n -   1 proxymap
smtp      unix  - - n -   - smtp
relay     unix  - - n -   - smtp
showq     unix  n - n -   - showq
error     unix  - - n -   - error
retry     unix  - - n -   - error
discard   unix  - - n -   - discard
virtual   unix  - n n -   - virtual
anvil     unix  - - n -   1 anvil
tlsmgr    unix  - - n 1000? 1 tlsmgr
scache    unix  - - n -   1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


class Postfix(Server):
    name = "postfix"
    hostname = "postfix.dst.example"
    greeting = "postfix.dst.example ESMTP Postfix"
    offers = words("PIPELINING SIZE VRFY ETRN ENHANCEDSTATUSCODES 8BITMIME DSN SMTPUTF8 CHUNKING")

    def read(self, path: Path) -> Mail:
        return read_fields(path)

    def start(self, scratch: Scratch) -> Program:
        domains = scratch.write("domains", "/^(.*[.])?example$/ ours\n")
        settings = f"""\
virtual_mailbox_domains = regexp:{domains}
virtual_mailbox_maps = static:store/
virtual_mailbox_base = {scratch.path}
virtual_uid_maps = static:{NOBODY}
virtual_gid_maps = static:{NOBODY}
smtpd_relay_restrictions = reject_unauth_destination
default_transport = error:no mail leaves this host
relay_transport = error:no mail leaves this host
"""
        settings += self.secure(scratch, POSTFIX_TLS) + self.settings
        if self.implicit:
            settings += "smtpd_tls_wrappermode = yes\n"
        if self._alone:
            settings += "inet_protocols = all\n"
        return start_postfix(scratch, self.port, settings, hosts=self.hosts, services=self.services())

    def services(self) -> str:
        """What master.cf says besides."""
        return ""


POSTFIX_TLS = """\
smtpd_tls_security_level = may
smtpd_tls_chain_files = {key}, {chain}
smtpd_tls_loglevel = 1
"""


class Exim(Server):
    name = "exim"
    hostname = "exim.dst.example"
    greeting = "exim.dst.example ESMTP Exim"
    offers = words("SIZE 8BITMIME PIPELINING CHUNKING PIPECONNECT SMTPUTF8 HELP")
    owner = USERS["Debian-exim"]

    def read(self, path: Path) -> Mail:
        return read_fields(path)

    def start(self, scratch: Scratch) -> Program:
        exim = find_unpacked("usr/sbin/exim4")
        for folder in ("spool", "logs"):
            scratch.mkdir(folder, owner=self.owner)
        tls = self.secure(scratch, EXIM_TLS, self.owner) or "tls_advertise_hosts =\n"
        if self.implicit:
            tls += f"tls_on_connect_ports = {self.port}\n"
        config = scratch.write("exim.conf", tls + EXIM.format(dir=scratch.path, exim=exim))
        listen = "<; " + " ; ".join(f"[{host}]:{self.port}" for host in self.hosts)
        return Program(
            [str(exim), "-bdf", "-q30m", "-oX", listen, "-C", str(config)],
            log=scratch.path / "log",
            binds=private_files(scratch) | private_libraries(scratch),
        )

    def log(self) -> str:
        logs = sorted((self._scratch.path / "logs").glob("*"))
        return super().log() + "".join(f"--- {path.name}\n{path.read_text()}" for path in logs)


EXIM_TLS = """\
tls_advertise_hosts = *
tls_certificate = {chain}
tls_privatekey = {key}
"""
EXIM = """\
exim_path = {exim}
spool_directory = {dir}/spool
log_file_path = {dir}/logs/%s
pid_file_path = {dir}/spool/pid
primary_hostname = exim.dst.example
local_interfaces = 127.0.0.1
host_lookup =
rfc1413_query_timeout = 0s
chunking_advertise_hosts = *
pipelining_advertise_hosts = *
deliver_drop_privilege = true
keep_environment =
acl_smtp_rcpt = check_rcpt
begin acl
check_rcpt:
  accept domains = example : *.example
  deny message = relay not permitted
begin routers
all:
  driver = accept
  domains = example : *.example
  transport = store
begin transports
store:
  driver = appendfile
  directory = {dir}/store
  maildir_format
  return_path_add
  envelope_to_add
"""


class OpenSMTPD(Server):
    name = "opensmtpd"
    hostname = "opensmtpd.dst.example"
    greeting = "opensmtpd.dst.example ESMTP OpenSMTPD"
    offers = words("8BITMIME ENHANCEDSTATUSCODES SIZE DSN HELP")
    owner = USERS["vmail"]

    def start(self, scratch: Scratch) -> Program:
        find_unpacked("usr/sbin/smtpd")
        tree = scratch.mkdir("tree")
        spool, state, run = scratch.mkdir("spool"), scratch.mkdir("lib"), scratch.mkdir("run")
        scratch.mkdir("lib/opensmtpd/empty")
        pki = self.secure(scratch, OPENSMTPD_TLS)
        tls = f"{'smtps' if self.implicit else 'tls'} pki opensmtpd.dst.example" if pki else ""
        settings = pki + OPENSMTPD.format(port=self.port, tls=tls, deliver=self.pipe(scratch))
        config = scratch.write("smtpd.conf", settings)
        # Paths that are compiled in. The tree comes first: it may itself lie below one of them.
        binds = {TREE: str(tree), tree / "usr/libexec": "/usr/libexec", spool: "/var/spool", run: "/run"}
        return Program(
            [f"{tree}/usr/sbin/smtpd", "-d", "-f", str(config)],
            log=scratch.path / "log",
            binds={**binds, **private_files(scratch), **private_libraries(scratch), state: "/var/lib"},
        )


OPENSMTPD_TLS = """\
pki opensmtpd.dst.example cert "{chain}"
pki opensmtpd.dst.example key "{key}"
"""
OPENSMTPD = """\
listen on 127.0.0.1 port {port} {tls} hostname opensmtpd.dst.example
action "store" mda "{deliver} '%{{sender}}' '%{{rcpt}}'" virtual {{ "@" = vmail }}
match from any for domain regex {{ "^(.*[.])?example$" }} action "store"
"""


class Sendmail(Server):
    name = "sendmail"
    hostname = "sendmail.dst.example"
    greeting = "sendmail.dst.example ESMTP Sendmail"
    offers = words("ENHANCEDSTATUSCODES PIPELINING 8BITMIME SIZE DSN ETRN EXPN VERB DELIVERBY HELP")

    def start(self, scratch: Scratch) -> Program:
        sendmail = find_unpacked("usr/libexec/sendmail/sendmail")
        scratch.mkdir("queue", 0o700)
        deliver = self.pipe(scratch)
        flags = "As" if self.implicit else "A"
        safe = scratch.mkdir("safe")  # it takes no key from below a directory in which all may write, such as /tmp
        config = SENDMAIL.format(dir=scratch.path, port=self.port, flags=flags, deliver=deliver, owner=self.owner)
        if self.identity is not None:
            self.identity.write(safe)
            config += SENDMAIL_TLS
        scratch.write("sendmail.cf", config.replace("<TAB>", "\t"))
        scratch.write("switch", "hosts files\naliases files\n")
        # It logs to syslog, of which there is none; -X writes down its conversations instead.
        files = ["-C", f"{scratch.path}/sendmail.cf", "-X", f"{scratch.path}/log.traffic"]
        binds = {safe: "/mnt", **private_files(scratch), **private_libraries(scratch)}
        return Program([str(sendmail), "-bD", *files], log=scratch.path / "log", binds=binds)


SENDMAIL_TLS = """\
O ServerCertFile=/mnt/tls.crt
O ServerKeyFile=/mnt/tls.key
O CACertFile=/mnt/tls.crt
O CACertPath=/mnt
"""
SENDMAIL = """\
V10/Berkeley
Djsendmail.dst.example
DnMAILER-DAEMON
O QueueDirectory={dir}/queue
O PidFile={dir}/pid
O DaemonPortOptions=Name=MTA,Family=inet,Addr=127.0.0.1,Port={port},M={flags}
O ServiceSwitchFile={dir}/switch
O HelpFile={dir}/none
O DefaultUser={owner}:{owner}
O DeliveryMode=background
O EightBitMode=pass8
O DontProbeInterfaces=True
O Timeout.ident=0s
O ConnectionRateThrottle=0
O SmtpGreetingMessage=$j Sendmail $v
O OperatorChars=.:%@!^/[]+
Troot
Troot daemon
HReceived: from $s by $j id $i$?{{tls_version}} (version=${{tls_version}})$.; $b
S3
R$*<$*>$*<TAB>$2
S0
R$+@example<TAB>$#store $@ local $: $1@example
R$+@$+.example<TAB>$#store $@ local $: $1@$2.example
R$*<TAB>$#error $@ 5.7.1 $: "550 relaying denied"
Scheck_rcpt
R$*<$*>$*<TAB>$2
R$+@example<TAB>$@ ok
R$+@$+.example<TAB>$@ ok
R$*<TAB>$#error $@ 5.7.1 $: "550 relaying denied"
Mlocal, P={deliver}, F=8lnm, U={owner}:{owner}, L=0, T=DNS/RFC822/X-Unix, A=deliver $f $u
Mprog, P={deliver}, F=8lnm, U={owner}:{owner}, L=0, T=DNS/RFC822/X-Unix, A=deliver $f $u
Mstore, P={deliver}, F=8lnm, U={owner}:{owner}, L=0, T=DNS/RFC822/X-Unix, A=deliver $f $u
"""


class Aiosmtpd(Server):
    """aiosmtpd 1.4.4, in a process of its own: the release whose messages end at LF.CRLF."""

    name = "aiosmtpd"
    hostname = "aiosmtpd.dst.example"
    greeting = "Python SMTP 1.4.4"
    offers = words("8BITMIME HELP")
    newline = b"\r\n"
    seconds = 10.0

    def start(self, scratch: Scratch) -> Program:
        if importlib.util.find_spec("aiosmtpd") is None:
            raise PeerUnavailable("aiosmtpd==1.4.4 is not installed (by pip)")
        listen = ["-n", "-l", f"{HOST}:{self.port}"]
        option = "smtps" if self.implicit else "tls"
        listen += self.secure(scratch, f"--{option}cert {{chain}} --{option}key {{key}}").split()
        listen += ["--no-requiretls"]
        return Program(
            [sys.executable, "-m", "aiosmtpd", *listen, "-c", "aiosmtpd_store.Store", str(self.store)],
            log=scratch.path / "log",
            env={"PYTHONPATH": str(Path(__file__).parent)},
        )


class SmtpSink(Server):
    """Postfix's own test server, which takes anything; it dumps each mail into a file.

    The file grows where it is read, but is complete before the client has its reply.
    """

    name = "smtp-sink"
    hostname = "sink.dst.example"
    greeting = "sink.dst.example ESMTP"
    offers = words("PIPELINING 8BITMIME AUTH XCLIENT XFORWARD ENHANCEDSTATUSCODES DSN")

    def read(self, path: Path) -> Mail:
        return read_dump(path)

    def start(self, scratch: Scratch) -> Program:
        argv = [find("smtp-sink"), "-h", "sink.dst.example", "-d", f"{self.store}/new/"]
        if os.geteuid() == 0:
            argv += ["-u", "nobody"]
        return Program([*argv, f"inet:{HOST}:{self.port}", "100"], log=scratch.path / "log")


SERVERS: dict[str, type[Server]] = {
    kind.name: kind for kind in (Postfix, Exim, OpenSMTPD, Sendmail, Aiosmtpd, SmtpSink)
}

TLS_SERVERS = tuple(name for name in SERVERS if name != SmtpSink.name)
