"""Every expression of the built dashboards."""

import importlib.util
import sys
from typing import NamedTuple

from tests.deploy.playbooks import REPOSITORY


class Expression(NamedTuple):
    """An expression, and the dashboard and panel that it stands in."""

    dashboard: str
    where: str
    text: str


def dashboard_expressions() -> list[Expression]:
    """All of them, with Grafana's variables filled in, by the module that belongs to the dashboards."""
    path = REPOSITORY / "grafana" / "sluicegate_dashboards" / "expressions.py"
    spec = importlib.util.spec_from_file_location("dashboard_expressions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return [Expression(*each) for each in module.expressions()]
