"""What is served by: the configuration and its rules, as they were read together.

Sessions finish by the setup they began with. A reload reads another one, and nothing of the two is mixed.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from smtpproxy.config import Config
from smtpproxy.session.verdicts import Judge


class Setup(NamedTuple):
    """A configuration and the judges of its rules: "" is the general one, a match block's is under its name."""

    config: Config
    judges: Mapping[str, Judge]


Load = Callable[[], Setup | None]  # reads all of it (again); None: it is wrong, and that has been said on stderr
