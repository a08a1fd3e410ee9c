"""The verb registry: every verb the proxy knows by name, and five pseudo-verbs that it needs besides.

`VERBS` maps the verb in capitals to its row. The rows stand in the files by maker; this one only joins them.

A pseudo-verb is never written as a verb on the wire, but is asked and replied to like one, so that every reply has an
exchange waiting for it: `GREETING` is asked by connecting, `SASL` by a base64 line after 334, `END` by end of data,
`OCTETS` by the last of the octets that XEXCH50 announced. `UNKNOWN` is the row for a verb that is not in the table.
None of the five is in `VERBS`, or a client that writes `GREETING` on a line would be taken for one that has just
connected.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smtpproxy.smtp.registry.rows import Argument, Default, Framing, FramingClass, Kind, Pipelining, Verb
from smtpproxy.smtp.registry.verbs_exchange import EXCHANGE
from smtpproxy.smtp.registry.verbs_rumoured import RUMOURED
from smtpproxy.smtp.registry.verbs_standard import STANDARD
from smtpproxy.smtp.registry.verbs_vendor import VENDOR

VERBS: Mapping[bytes, Verb] = MappingProxyType(
    {verb.name.encode("ascii"): verb for verb in (*STANDARD, *VENDOR, *EXCHANGE, *RUMOURED)}
)

GREETING = Verb(
    name="GREETING",
    kind=Kind.PSEUDO,
    argument=Argument.NONE,
    syntax="(the client connects)",
    framing=FramingClass.LINE,
    pipelining=Pipelining.STOP,
    reference="RFC 5321 §3.1, §4.3.2",
    default=Default.ALLOW,
    why="The server speaks first, and a client that doesn't wait for it breaks the protocol.",
    what="Stands for the connection, to which the server's greeting is the reply.",
    success="220",
    failure="421 521 554",
    holds=True,
    refusal="554 5.3.2 Service not available",
)

SASL = Verb(
    name="SASL",
    kind=Kind.PSEUDO,
    argument=Argument.SECRET,
    syntax='base64 / "*"',
    framing=FramingClass.SASL,
    pipelining=Pipelining.STOP,
    reference="RFC 4954 §4",
    default=Default.ALLOW,
    why="The AUTH before it was let through.",
    what="Stands for one line the client sends after 334.",
    success="334 (more to say), 235",
    failure="432 454 500 501 534 535 538",
    then={334: Framing.SASL},
    holds=True,
    refusal="535 5.7.8 Authentication refused",
    risk="The line carries secrets and is never recorded.",
)

END = Verb(
    name="END",
    kind=Kind.PSEUDO,
    argument=Argument.NONE,
    syntax='CRLF "." CRLF',
    framing=FramingClass.LINE,
    pipelining=Pipelining.LAST,
    reference="RFC 5321 §4.1.1.4",
    default=Default.ALLOW,
    why="What the content holds is for the content rules to decide.",
    what="Stands for end of data after DATA, to which the server replies whether it takes the message.",
    success="250",
    failure="450 451 452 550 552 554",
    refusal="554 5.7.1 Message refused",
)

OCTETS = Verb(
    name="OCTETS",
    kind=Kind.PSEUDO,
    argument=Argument.NONE,
    syntax="counted octets",
    framing=FramingClass.GO_OCTETS,
    pipelining=Pipelining.STOP,
    reference="Microsoft Exchange 2000/2003",
    default=Default.ALLOW,
    why="The octets are let through only where the command that announced them was.",
    what="Stands for the last of the octets a command announced, to which the server replies whether it takes them.",
    success="250",
    failure="500",
    holds=True,
    refusal="500 5.5.1 Octets refused",
)

UNKNOWN = Verb(
    name="UNKNOWN",
    kind=Kind.PSEUDO,
    argument=Argument.TEXT,
    syntax="verb [SP text]",
    framing=FramingClass.UNKNOWN,
    pipelining=Pipelining.STOP,
    reference="RFC 5321 §4.2.4",
    default=Default.DENY,
    why="A verb nobody has described may change what the next octets are, and then nothing can be inspected.",
    what="Stands for every verb that is not in the registry.",
    failure="500 502",
    holds=True,
    refusal="500 5.5.1 Command unrecognized",
    confidence="U",
)
