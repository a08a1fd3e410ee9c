"""`smtpproxy audit`: asking the record, proving it, handing it on. The commands are loaded when one of them is wanted:
the proxy itself needs none of what they import."""

from functools import cache

import click


@cache
def _commands() -> dict[str, click.Command]:
    from smtpproxy import (
        audit_asking_cli,
        audit_export_cli,
        audit_key_cli,
        audit_proof_cli,
        audit_show_cli,
        privacy_cli,
    )

    found = [audit_key_cli.key]
    for module in (audit_asking_cli, audit_show_cli, audit_export_cli, audit_proof_cli, privacy_cli):
        found += module.COMMANDS
    return {str(command.name): command for command in found}


class _Audit(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _commands().get(cmd_name)


@click.command(
    cls=_Audit,
    short_help="Search, show, watch, export and prove the record.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def audit() -> None:
    """Search, show, watch, export and prove the record.

    A proxy with `[audit] store` keeps its record in a database that these commands ask, also while it runs. The store
    is said by --store, or found in the configuration (--config, or /etc/smtpproxy/smtpproxy.toml).

    \b
    Examples:
      smtpproxy audit search --recipient alice@example.org --since 2h
      smtpproxy audit show 4d9d6b7a53-1
      smtpproxy audit tail --follow --verdict answer
      smtpproxy audit verify --checkpoint kept.txt
      smtpproxy audit export --format ecs --since yesterday
    """
