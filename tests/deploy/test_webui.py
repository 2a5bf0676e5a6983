"""Open WebUI by its role on a booted host, used in a browser: `make test-webui`. It downloads some 3 GB.

The host has no engine of its own: its gateway asks the real vLLM that the tests of the engine share. The screenshots in
docs are taken here. The tests stand in the order in which they run.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from sluicegate_run.recipe import CPU_TORCH
from tests.deploy import chat_page, outside
from tests.deploy.chat_page import ChatPage
from tests.deploy.deployment import prepared
from tests.deploy.eventually import NotYet, eventually
from tests.deploy.forwarding import forwarded
from tests.deploy.host import Host, booted_host
from tests.deploy.playbooks import LOGS, REPOSITORY, Run
from tests.deploy.visitors import Gateway
from tests.engine.real import START_S, RealEngine

pytestmark = pytest.mark.webui

SCREENSHOTS = REPOSITORY / "docs/open-webui"
PASSWORD_FILE = "/etc/open-webui/admin-password"
ADMINISTRATOR = "admin@localhost"

#: What a first message asks for, its answer and three tasks, all finds a place.
SLOTS, QUEUE, QUEUE_TIMEOUT_S = 2, 4, 120
SITE = ("site", "--tags", "uv,gateway,open_webui")
LOG = "1-site"

#: Two cores serve the engine, the browser and Open WebUI: an answer of 200 tokens may take minutes (seconds).
ANSWER_S = 300.0
#: From the click on Stop to a free slot; it took 72 ms (seconds).
STOP_S = 5.0


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The one host of this module."""
    with booted_host() as host:
        yield host


@pytest.fixture(scope="module")
def page_url(host: Host) -> Iterator[str]:
    """Where the browser finds the page: a port of this machine, as through an SSH tunnel."""
    with forwarded(("127.0.0.1", 0), ("127.0.0.1", 3000), Path(host.network.path)) as (address, port):
        yield f"http://{address}:{port}"


@pytest.fixture(scope="module")
def site(host: Host, page_url: str, shared_engine: RealEngine) -> Iterator[Run]:
    """The play that has built the host; an AssertionError if it failed."""
    if not shared_engine.runs:
        shared_engine.start()
    with forwarded((host.network.here, 0), ("127.0.0.1", shared_engine.port)) as (address, port):
        more: dict[str, object] = {
            "vllm_manage": False,
            "gateway_engine": f"http://{address}:{port}",
            "gateway_max_active": SLOTS,
            "gateway_queue_max": QUEUE,
            "gateway_queue_timeout_s": QUEUE_TIMEOUT_S,
            "open_webui_manage": True,
            "open_webui_origins": [page_url],
        }
        if set(outside.PIP_SOURCES) & set(outside.look().pip):
            # PyTorch's own index may be out of reach of a machine that has its packages from elsewhere.
            more["open_webui_extra_index_args"] = [f"torch=={CPU_TORCH}+cpu"]
        with prepared(host, "webui-", more) as deployment:
            shared_engine.engine.wait_ready(START_S)
            yield deployment.play(*SITE, log=LOG).succeeded()


@pytest.fixture(scope="module")
def gateway(host: Host, site: Run) -> Gateway:
    return Gateway(f"http://{host.network.host}:8080")


@pytest.fixture(scope="module")
def password(host: Host, site: Run) -> str:
    return host.output("cat", PASSWORD_FILE).strip().removeprefix("WEBUI_ADMIN_PASSWORD=")


@pytest.fixture(scope="module")
def chat(page_url: str, password: str) -> Iterator[ChatPage]:
    """The administrator's browser."""
    with chat_page.signed_in(page_url, ADMINISTRATOR, password) as chat:
        yield chat


def idle(gateway: Gateway) -> None:
    """Raises NotYet while a request has a slot or is queued."""
    metrics = gateway.metrics()
    if metrics["api_active_requests"] or metrics["api_queue_depth"]:
        raise NotYet(f"{metrics['api_active_requests']:g} active, {metrics['api_queue_depth']:g} queued")


def test_password_is_generated_and_not_shown(host: Host, site: Run, password: str) -> None:
    """The play says where it is, having signed in with it."""
    assert len(password) > 30
    assert host.output("stat", "--format=%U:%G %a", PASSWORD_FILE) == "root:root 600\n"
    (told,) = [task for task in site.tasks if task.name == "Report the path of the first administrator's password"]
    assert f"sudo cat {PASSWORD_FILE}" in told.message
    assert password not in "".join(path.read_text() for path in LOGS.glob(f"webui-{LOG}*"))


def test_nobody_signs_up(page_url: str, site: Run) -> None:
    stranger = {"name": "Stranger", "email": "stranger@example.org", "password": "long enough a password"}
    assert httpx2.post(f"{page_url}/api/v1/auths/signup", json=stranger, timeout=60).status_code == 403
    assert httpx2.get(f"{page_url}/api/config", timeout=60).json()["features"]["enable_signup"] is False


def test_other_origins_are_refused(page_url: str, site: Run) -> None:
    """Only pages of open_webui_origins may read what Open WebUI answers."""
    for origin, allowed in ((page_url, page_url), ("https://evil.example.org", None)):
        answer = httpx2.get(f"{page_url}/api/config", headers={"origin": origin}, timeout=60)
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_chat_is_answered(chat: ChatPage, gateway: Gateway) -> None:
    """No tool is sent, for the engine calls none; title, tags and follow-ups end by themselves."""
    answer = chat.ask("What is the capital of France?")
    answer.get_by_text("Paris").wait_for(timeout=ANSWER_S * 1000)
    chat.stop.wait_for(state="detached", timeout=ANSWER_S * 1000)
    eventually(lambda: idle(gateway), ANSWER_S)
    chat.screenshot(SCREENSHOTS / "chat.png")


def test_answer_is_streamed_and_stopped(chat: ChatPage, gateway: Gateway) -> None:
    """An answer grows on the page; Stop frees its slot at once and keeps what was written."""
    answer = chat.ask("Write a long story about a river.")
    lengths: set[int] = set()

    def grown() -> None:
        lengths.add(len(answer.inner_text()))
        assert len(lengths) > 5, lengths

    eventually(grown, ANSWER_S)
    chat.screenshot(SCREENSHOTS / "streaming.png")
    chat.stop.click()
    eventually(lambda: idle(gateway), STOP_S)
    assert len(answer.inner_text()) >= max(lengths)
    assert gateway.metrics()['api_outcomes_total{outcome="client_gone_active"}'] >= 1


def test_shed_request_is_seen_on_the_page(chat: ChatPage, gateway: Gateway) -> None:
    """The page shows the gateway's sentence in the place of the answer."""
    over = threading.Event()

    def occupy(number: int) -> None:
        reading = gateway.stream(f"Tell me about river {number}.", 1000).read()
        for _ in reading:
            if over.is_set():
                break
        reading.close()  # type: ignore[attr-defined]

    def full() -> None:
        depth = gateway.metrics()["api_queue_depth"]
        assert depth == QUEUE, f"{depth:g} of {QUEUE} are queued"

    with ThreadPoolExecutor(SLOTS + QUEUE) as pool:
        crowd = [pool.submit(occupy, number) for number in range(SLOTS + QUEUE)]
        try:
            eventually(full, ANSWER_S)
            chat.ask("And what is the capital of Italy?")
            chat.page.get_by_text("Retry after").first.wait_for(timeout=ANSWER_S * 1000)
            chat.screenshot(SCREENSHOTS / "shed.png")
        finally:
            over.set()
    for each in crowd:
        each.result()
