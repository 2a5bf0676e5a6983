"""The kinds of panel, each with what none may lack: title, description, unit, data source, text for no data."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common as build_common
from grafana_foundation_sdk.builders import heatmap as build_heatmap
from grafana_foundation_sdk.builders import prometheus as build_prometheus
from grafana_foundation_sdk.builders import stat as build_stat
from grafana_foundation_sdk.builders import statetimeline as build_timeline
from grafana_foundation_sdk.builders import table as build_table
from grafana_foundation_sdk.builders import timeseries as build_timeseries
from grafana_foundation_sdk.models import common, heatmap, prometheus
from grafana_foundation_sdk.models.dashboard import (
    DashboardFieldConfigSourceOverrides,
    DashboardLink,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColor,
    FieldColorModeId,
    FieldConfigSource,
    MatcherConfig,
    Panel,
    Threshold,
    ThresholdsConfig,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

from .names import DATA_SOURCE, TITLES, Uid, dashboard_url, runbook_url

SOURCE = DataSourceRef(type_val="prometheus", uid=DATA_SOURCE)
NO_DATA = "No data: is the target up?"
NO_TRAFFIC = "No traffic"

GOOD, WARNING, BAD, QUIET = "green", "orange", "red", "text"
#: A share of a limit that itself comes from a metric: fine, nearly full, full.
FILLING = ((None, GOOD), (0.8, WARNING), (0.95, BAD))
#: Something that should never happen.
NEVER = ((None, GOOD), (1, BAD))
#: Only a value, neither good nor bad.
PLAIN = ((None, QUIET),)

Steps = Sequence[tuple[float | None, str]]


@dataclass(frozen=True)
class Query:
    """One expression of a panel. `limit`: drawn as a dashed red line, what the others may not reach."""

    expression: str
    legend: str = ""
    limit: bool = False


@dataclass(frozen=True)
class Text:
    """The texts of a panel.

    `about` says what to make of what is seen. `runbook` names the alerts that watch it, `more` the dashboard that
    shows its causes, and `empty` what it means that there is no data.
    """

    title: str
    about: str
    unit: str
    runbook: tuple[str, ...] = ()
    more: Uid | None = None
    empty: str = NO_DATA


def series(
    text: Text,
    *queries: Query,
    stacked: bool = False,
    colours: Mapping[str, str] | None = None,
    steps: Steps | None = None,
    maximum: float | None = None,
    step: str | None = None,
) -> Panel:
    """Lines over time, from 0. `colours`: fixed, by legend. `step`: the shortest step, for slow exporters."""
    builder = (
        build_timeseries.Panel()
        .draw_style(common.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .axis_soft_min(0)
        .legend(
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "max", "lastNotNull"])
        )
        .tooltip(
            build_common.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        builder.stacking(build_common.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if maximum is not None:
        builder.max(maximum)
    if step is not None:
        builder.interval(step)
    if steps is not None:
        builder.thresholds_style(build_common.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    panel = _finished(builder.build(), text, queries, steps or PLAIN)
    config = _config(panel)
    config.defaults.color = FieldColor(mode=FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
    for legend, colour in (colours or {}).items():
        config.overrides.append(_override("byName", legend, color=_fixed(colour)))
    for ref, query in zip(string.ascii_uppercase, queries, strict=False):
        if query.limit:
            config.overrides.append(_limit(ref))
    return panel


def stat(
    text: Text,
    query: Query,
    steps: Steps = PLAIN,
    *,
    words: Mapping[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
) -> Panel:
    """One number, now, with its course behind it. `words`: value → (text, colour)."""
    builder = (
        build_stat.Panel()
        .graph_mode(common.BigValueGraphMode.NONE if words else common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME if query.legend else common.BigValueTextMode.VALUE)
        .reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        builder.decimals(decimals)
    return _worded(_finished(builder.build(), text, (query,), steps), words)


def timeline(text: Text, words: Mapping[str, tuple[str, str]], *queries: Query) -> Panel:
    """States over time, one line each. `words`: value → (text, colour)."""
    builder = (
        build_timeline.Panel()
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
        .legend(
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(build_common.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    return _worded(_finished(builder.build(), text, queries, PLAIN), words)


def heat(text: Text, expression: str) -> Panel:
    """A classic histogram over time: the colour is the number of observations, the height their value."""
    builder = (
        build_heatmap.Panel()
        .calculate(False)
        .rows_frame(build_heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.LE))
        .color(
            build_heatmap.HeatmapColorOptions()
            .mode(heatmap.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(build_heatmap.YAxisConfig().unit(text.unit).axis_placement(common.AxisPlacement.LEFT))
        .cell_values(build_heatmap.CellValues().unit("reqps"))
        .filter_values(build_heatmap.FilterValueRange().le(1e-9))
        .show_legend()
        .mode(common.TooltipDisplayMode.SINGLE)
        .show_y_histogram()
        .show_color_scale(True)
    )
    panel = _finished(builder.build(), text, (), PLAIN)
    panel.targets = [_target(Query(expression, "{{le}}"), "A", prometheus.PromQueryFormat.HEATMAP)]
    return panel


def table(
    text: Text,
    *queries: Query,
    names: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    sort: str,
) -> Panel:
    """Numbers now, one line for each label set that the queries share.

    `names`: label, or Value of a query (`Value #A`), → column; what is not named is left out. `units`: by column.
    """
    builder = (
        build_table.Panel()
        .show_header(True)
        .cell_height(common.TableCellHeight.SM)
        .sort_by([build_common.TableSortByFieldState().display_name(sort).desc(True)])
    )
    panel = _finished(builder.build(), text, (), PLAIN)
    panel.targets = [
        _target(query, ref, prometheus.PromQueryFormat.TABLE)
        for ref, query in zip(string.ascii_uppercase, queries, strict=False)
    ]
    panel.transformations = [
        DataTransformerConfig(id_val="merge", options={}),
        DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(names)}}),
        DataTransformerConfig(
            id_val="organize",
            options={
                "renameByName": dict(names),
                "indexByName": {name: index for index, name in enumerate(names)},
                "excludeByName": {},
            },
        ),
    ]
    for column, unit in (units or {}).items():
        _config(panel).overrides.append(_override("byName", column, unit=unit))
    return panel


def _finished(panel: Panel, text: Text, queries: Sequence[Query], steps: Steps) -> Panel:
    panel.title = text.title
    panel.description = text.about
    panel.datasource = SOURCE
    panel.links = [
        *(DashboardLink(f"Runbook: {alert}", url=runbook_url(alert), target_blank=True) for alert in text.runbook),
        *([DashboardLink(f"More: {TITLES[text.more]}", url=_same_view(text.more))] if text.more else []),
    ]
    panel.targets = [
        _target(query, ref, prometheus.PromQueryFormat.TIME_SERIES)
        for ref, query in zip(string.ascii_uppercase, queries, strict=False)
    ]
    defaults = _config(panel).defaults
    defaults.unit = text.unit
    defaults.no_value = text.empty
    defaults.thresholds = ThresholdsConfig(
        mode=ThresholdsMode.ABSOLUTE, steps=[Threshold(value=value, color=colour) for value, colour in steps]
    )
    if defaults.color is None:
        defaults.color = FieldColor(mode=FieldColorModeId.THRESHOLDS)
    return panel


def _same_view(uid: Uid) -> str:
    return dashboard_url(uid) + "?${__url_time_range}&${__all_variables}"


def _target(query: Query, ref: str, form: prometheus.PromQueryFormat) -> prometheus.Dataquery:
    builder = build_prometheus.Dataquery().expr(query.expression).ref_id(ref).format(form).datasource(SOURCE)
    builder.editor_mode(prometheus.QueryEditorMode.CODE).legend_format(query.legend)
    if form == prometheus.PromQueryFormat.TABLE:
        return builder.instant().build()
    return builder.range().build()


def _worded(panel: Panel, words: Mapping[str, tuple[str, str]] | None) -> Panel:
    if words:
        results = {
            value: ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(words.items())
        }
        _config(panel).defaults.mappings = [ValueMap(options=results)]
    return panel


def _limit(ref: str) -> DashboardFieldConfigSourceOverrides:
    line: dict[str, object] = {
        "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
        "custom.lineWidth": 2,
        "custom.fillOpacity": 0,
        "custom.stacking": {"mode": "none", "group": "limit"},
        "color": _fixed(BAD),
    }
    return _override("byFrameRefID", ref, **line)


def _override(
    matcher: Literal["byName", "byFrameRefID"], of: str, **properties: object
) -> DashboardFieldConfigSourceOverrides:
    return DashboardFieldConfigSourceOverrides(
        matcher=MatcherConfig(id_val=matcher, options=of),
        properties=[DynamicConfigValue(id_val=name, value=value) for name, value in properties.items()],
    )


def _fixed(colour: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": colour}


def _config(panel: Panel) -> FieldConfigSource:
    if panel.field_config is None:
        panel.field_config = FieldConfigSource()
    return panel.field_config
