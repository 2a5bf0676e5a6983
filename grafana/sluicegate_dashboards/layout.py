"""Rows of panels → a dashboard: places and ids of panels, and what all five share (variables, marks, links)."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import (
    AnnotationContainer,
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardDashboardTemplating,
    DashboardDashboardTime,
    DashboardLink,
    GridPos,
    Panel,
    RowPanel,
    VariableHide,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import Dataquery

from prometheus.sluicegate_rules.definitions import definitions

from .names import SCHEMA_VERSION, TITLES, Uid, dashboard_url
from .panels import SOURCE
from .queries import engine, gateway

#: Grafana's grid.
COLUMNS = 24

#: Bounds of the gateway's histograms, as they stand in the label `le`: a share at another value would be a guess.
TTFT_GOALS = ("0.5", "1.0", "1.5", "2.0", "3.0", "5.0", "10.0")
ITL_GOALS = ("0.03", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3")
TTFT_GOAL, ITL_GOAL = definitions().objectives.ttft.bound_s, definitions().inter_token_bound_s


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading; those that do not fit go below. `width`: in columns, of all or of each."""

    title: str
    height: int
    width: int | Sequence[int]
    panels: Sequence[Panel]


def panel_id(title: str) -> int:
    """A panel's id follows from its title, so that links of alerts and bookmarks outlive a change of the layout."""
    return zlib.crc32(title.encode()) % 1_000_000


def dashboard(uid: Uid, description: str, rows: Sequence[Row]) -> Dashboard:
    """One of the five."""
    return Dashboard(
        uid=uid,
        title=TITLES[uid],
        description=description,
        tags=["sluicegate"],
        editable=False,
        graph_tooltip=DashboardCursorSync.CROSSHAIR,
        time=DashboardDashboardTime(from_val="now-1h", to="now"),
        refresh="30s",
        schema_version=SCHEMA_VERSION,
        panels=_placed(rows),
        templating=DashboardDashboardTemplating(list_val=_variables(rows)),
        annotations=AnnotationContainer(list_val=_marks()),
        links=[
            DashboardLink(TITLES[other], icon="dashboard", url=dashboard_url(other), include_vars=True, keep_time=True)
            for other in Uid
            if other is not uid
        ],
    )


def _placed(rows: Sequence[Row]) -> list[Panel | RowPanel]:
    placed: list[Panel | RowPanel] = []
    y = 0
    for row in rows:
        heading = RowPanel(
            title=row.title, id_val=panel_id(f"row {row.title}"), grid_pos=GridPos(h=1, w=COLUMNS, x=0, y=y)
        )
        placed.append(heading)
        y += 1
        x = 0
        widths = [row.width] * len(row.panels) if isinstance(row.width, int) else row.width
        for width, panel in zip(widths, row.panels, strict=True):
            if x + width > COLUMNS:
                x, y = 0, y + row.height
            panel.grid_pos = GridPos(h=row.height, w=width, x=x, y=y)
            panel.id_val = panel_id(panel.title or "")
            placed.append(panel)
            x += width
        y += row.height
    return placed


def _variables(rows: Sequence[Row]) -> list[VariableModel]:
    variables = [
        _choice("instance", "Host", "label_values(up, instance)", "Hosts, as Prometheus names them."),
        _choice(
            "model",
            "Model",
            'label_values(vllm:num_requests_running{instance=~"$instance"}, model_name)',
            "Models by the name under which they are served.",
        ),
        _goal("ttft_goal", "TTFT goal (s)", TTFT_GOALS, TTFT_GOAL),
        _goal("itl_goal", "ITL goal (s)", ITL_GOALS, ITL_GOAL),
    ]
    # One that no panel here asks for is not offered, but still carried along by the links.
    targets = [target for row in rows for panel in row.panels for target in panel.targets or ()]
    expressions = [target.expr for target in targets if isinstance(target, Dataquery)]
    for variable in variables:
        if not any(f'"${variable.name}"' in expression for expression in expressions):
            variable.hide = VariableHide.HIDE_VARIABLE
    return variables


def _choice(name: str, label: str, query: str, description: str) -> VariableModel:
    return (
        build.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        # qryType 1 is "label values": without it the editor shows an empty form.
        .query({"qryType": 1, "query": query, "refId": f"variable-{name}"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .hide(VariableHide.DONT_HIDE)
        .build()
    )


def _goal(name: str, label: str, goals: Sequence[str], chosen: str) -> VariableModel:
    return (
        build.CustomVariable(name)
        .label(label)
        .description("What counts as good; bounds of the histogram's buckets, so that the share is exact.")
        .values(",".join(goals))
        .current(VariableOption(selected=True, text=chosen, value=chosen))
        .options([VariableOption(selected=goal == chosen, text=goal, value=goal) for goal in goals])
        .hide(VariableHide.DONT_HIDE)
        .build()
    )


class _Mark(AnnotationQuery):
    """An annotation of a Prometheus query; the SDK's own class lacks the fields that this data source reads."""

    def __init__(self, name: str, colour: str, expr: str, text: str, tags: str, at_value: bool) -> None:
        super().__init__(name=name, datasource=SOURCE, enable=True, hide=False, icon_color=colour, expr=expr)
        self.text = text
        self.tags = tags
        self.at_value = at_value

    def to_json(self) -> dict[str, object]:
        return {
            **super().to_json(),
            "titleFormat": self.name,
            "textFormat": self.text,
            "tagKeys": self.tags,
            "useValueForTime": self.at_value,
        }


def _marks() -> list[AnnotationQuery]:
    return [
        _Mark("Deploys", "blue", gateway.DEPLOYS, "Sluicegate {{version}} on {{instance}}", "instance,version", True),
        _Mark("Gateway starts", "purple", gateway.DAEMON_STARTS, "Gateway started on {{instance}}", "instance", True),
        _Mark("Engine starts", "orange", engine.STARTS, "Engine started on {{instance}}", "instance", True),
        _Mark(
            "Configuration reloads",
            "yellow",
            gateway.RELOADS_SEEN,
            "Configuration {{result}} on {{instance}}",
            "instance,result",
            False,
        ),
    ]
