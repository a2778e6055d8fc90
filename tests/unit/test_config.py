"""Settings: where they come from, which wins, what is refused and in which words."""

import re
from pathlib import Path

import click
import pytest

from raftkv.config import Config, ConfigError, check_first_start
from raftkv.flags import OPTIONS, environment_warnings, parse

THREE = "n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380"


def refusal(*argv: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_first_start(parse(argv, environ or {}))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_without_arguments_it_is_one_member_on_localhost() -> None:
    assert parse([], {}) == Config()
    assert Config().warnings == ()


def test_data_directory_and_cluster_follow_the_name() -> None:
    config = parse(["--name", "n7"], {})
    assert config.data_dir == "n7.raftkv"
    assert config.initial_cluster == (("n7", ("http://localhost:2380",)),)


def test_every_flag_arrives_in_its_field() -> None:
    config = parse(
        [
            *("--name", "n1", "--data-dir", "/d"),
            *("--listen-client-urls", "http://0.0.0.0:1,http://[::1]:0", "--advertise-client-urls", "http://a:1"),
            *("--listen-peer-urls", "http://127.0.0.1:0"),
            *("--initial-advertise-peer-urls", "http://10.0.0.1:2380", "--initial-cluster", THREE),
            *("--initial-cluster-token", "t", "--initial-cluster-state", "existing"),
            *("--heartbeat-interval", "20", "--election-timeout", "200"),
            *("--max-request-bytes", "5", "--max-txn-ops", "6", "--max-concurrent-streams", "7"),
            *("--watch-progress-notify-interval", "1m0.5s"),
            *("--log-level", "debug", "--log-format", "json"),
        ],
        {},
    )
    assert config == Config(
        name="n1",
        data_dir="/d",
        listen_client_urls=("http://0.0.0.0:1", "http://[::1]:0"),
        advertise_client_urls=("http://a:1",),
        listen_peer_urls=("http://127.0.0.1:0",),
        initial_advertise_peer_urls=("http://10.0.0.1:2380",),
        initial_cluster=tuple((f"n{i}", (f"http://10.0.0.{i}:2380",)) for i in (1, 2, 3)),
        initial_cluster_token="t",
        initial_cluster_state="existing",
        heartbeat_interval_ms=20,
        election_timeout_ms=200,
        max_request_bytes=5,
        max_txn_ops=6,
        max_concurrent_streams=7,
        watch_progress_notify_interval_seconds=60.5,
        log_level="debug",
        log_format="json",
    )


def test_a_member_may_have_several_peer_urls() -> None:
    config = parse(
        ["--name", "a", "--initial-cluster", "a=http://x:1,b=http://y:1,a=http://x:2"]
        + ["--initial-advertise-peer-urls", "http://x:2,http://x:1"],
        {},
    )
    assert config.initial_cluster == (("a", ("http://x:1", "http://x:2")), ("b", ("http://y:1",)))


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "n.yaml"
    file.write_text("name: from-file\nmax-txn-ops: 1\nmax-request-bytes: 1\n")
    environ = {"RAFTKV_CONFIG_FILE": str(file), "RAFTKV_NAME": "from-environment", "RAFTKV_MAX_TXN_OPS": "2"}
    config = parse(["--name=from-flag"], environ)
    assert (config.name, config.max_txn_ops, config.max_request_bytes) == ("from-flag", 2, 1)
    assert config.heartbeat_interval_ms == Config().heartbeat_interval_ms


def test_an_empty_variable_counts_as_unset() -> None:
    assert parse([], {"RAFTKV_NAME": ""}).name == "default"


def test_one_dash_is_enough_as_in_etcd() -> None:
    assert parse(["-name", "x", "-max-txn-ops=3"], {}) == parse(["--name", "x", "--max-txn-ops=3"], {})


def test_a_file_may_write_urls_as_a_list(tmp_path: Path) -> None:
    file = tmp_path / "n.yaml"
    file.write_text("advertise-client-urls: [http://a:1, http://b:1]\n")
    assert parse(["--config-file", str(file)], {}).advertise_client_urls == ("http://a:1", "http://b:1")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "n.yaml"
    file.write_text("# nothing yet\n")
    assert parse(["--config-file", str(file)], {}) == Config()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nam", "x"], ["unknown flag --nam", "did you mean --name?"]),
        (["-nme", "x"], ["unknown flag --nme", "--name"]),
        (["--zzz"], ["unknown flag --zzz", "raftkv --help"]),
        (["simm"], ["unexpected extra argument (simm)", "the commands are `wal` and `sim`"]),
        (["--enable-pprof", "maybe"], ["--enable-pprof: 'maybe' is neither true nor false"]),
        (["--data-dir"], ["--data-dir", "requires an argument"]),
        (["--max-request-bytes", "x"], ["--max-request-bytes: 'x' is not a number; expected is a whole number of at"]),
        (
            ["--max-txn-ops", "many"],
            ["--max-txn-ops: 'many' is not a number; expected is a whole number of at least 1"],
        ),
        (["--max-txn-ops", "0"], ["--max-txn-ops: 0 is not in the range x>=1"]),
        (["--initial-cluster-state", "old"], ["--initial-cluster-state: 'old' is not one of 'new', 'existing'"]),
        (["--log-format", "xml"], ["--log-format", "'text', 'json'"]),
        (["--name", ""], ["--name must not be empty"]),
        (["--name", "a=b"], ["--name 'a=b' must not contain"]),
        (["--data-dir", " "], ["--data-dir must not be empty"]),
        (["--initial-cluster-token", ""], ["--initial-cluster-token must not be empty"]),
        (
            ["--listen-client-urls", "http://127.0.0.1:1"],
            ["--advertise-client-urls is required when --listen-client-urls is set explicitly"],
        ),
        (
            ["--heartbeat-interval", "300"],
            ["--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]"],
        ),
        (
            ["--election-timeout", "50001"],
            ["--election-timeout[50001ms] is too long, and should be set less than 50000ms"],
        ),
        (["--initial-cluster", THREE], ['couldn\'t find local name "default"', "n1, n2, n3"]),
        (
            ["--name", "n1", "--initial-cluster", THREE],
            ["--initial-cluster has n1=http://10.0.0.1:2380 but missing from --initial-advertise-peer-urls=http://loc"],
        ),
        (
            ["--initial-cluster", "default=http://a:1", "--initial-advertise-peer-urls", "http://a:1,http://a:2"],
            ["--initial-advertise-peer-urls has http://a:2 but missing from --initial-cluster=default=http://a:1"],
        ),
        (["--initial-cluster", "a=http://x:1,b=http://x:1"], ["has duplicate url http://x:1"]),
        (["--initial-cluster", "http://x:1"], ["'http://x:1' is not of the form name=http://host:port"]),
        (["--initial-cluster", "a=http://x"], ['does not have the form "host:port": http://x']),
    ],
)
def test_refusals_name_the_setting_and_the_remedy(argv: list[str], words: list[str]) -> None:
    message = refusal(*argv)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no valid URLs given"),
        ("localhost:2380", "URL scheme must be http"),
        ("unix://127.0.0.1:2380", "URL scheme must be http or https: unix://127.0.0.1:2380"),
        ("http://127.0.0.1", 'does not have the form "host:port"'),
        ("http://127.0.0.1:2380/", "URL must not contain a path: http://127.0.0.1:2380/"),
        ("http://127.0.0.1:2380?x", "URL must not contain a path"),
        ("http://u@127.0.0.1:2380", "URL must not contain a user"),
        ("http://127.0.0.1:99999", "is not a URL"),
        ("http://127.0.0.1:x", "is not a URL"),
        ("http://[::1:2380", "is not a URL"),
        ("http://127.0.0.1:1,http://127.0.0.1:1", "given twice"),
    ],
)
@pytest.mark.parametrize("flag", ["--listen-peer-urls", "--initial-advertise-peer-urls"])
def test_malformed_urls(flag: str, url: str, words: str) -> None:
    message = refusal(flag, url)
    assert message.startswith(f"{flag}: ")
    assert words in message


def test_a_name_can_be_advertised_but_not_listened_on() -> None:
    assert "expected IP in URL for binding" in refusal("--listen-peer-urls", "http://db1:2380")
    assert parse(["--initial-advertise-peer-urls", "http://db1:2380"], {}).initial_cluster[0][1] == ("http://db1:2380",)
    assert "unexpected empty host" in refusal("--initial-advertise-peer-urls", "http://:2380")
    assert parse(["--listen-peer-urls", "http://:2380"], {}).listen_peer_urls == ("http://:2380",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nme: x\n", ["unknown key nme", "did you mean name?"]),
        ("config-file: x\n", ["unknown key config-file"]),
        ("- name\n", ["must hold a mapping"]),
        ("name: [\n", ["is not YAML"]),
        ("name: {a: b}\n", ["name must be a text, a number or a list"]),
        (
            "max-txn-ops: many\n",
            ["--max-txn-ops: 'many' is not a number; expected is a whole number of at least 1", "(from --config-file)"],
        ),
    ],
)
def test_refused_files(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "n.yaml"
    file.write_text(content)
    message = refusal("--config-file", str(file))
    for word in words:
        assert word in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"cannot read --config-file {tmp_path}/n.yaml: no such file" in refusal(
        "--config-file", f"{tmp_path}/n.yaml"
    )


def test_a_bad_variable_is_named() -> None:
    message = refusal(environ={"RAFTKV_ELECTION_TIMEOUT": "soon"})
    assert "--election-timeout: 'soon'" in message
    assert "(from RAFTKV_ELECTION_TIMEOUT)" in message


def test_unknown_variables_are_warned_about() -> None:
    environ = {
        "RAFTKV_NAME": "x",
        "RAFTKV_NAMES": "x",
        "RAFTKV_SERVICE_HOST": "set by Kubernetes",
        "RAFTKV_PORT_2379_TCP": "set by Kubernetes",
        "HOME": "/",
    }
    assert environment_warnings(environ) == [
        "unknown environment variable RAFTKV_NAMES: did you mean RAFTKV_NAME? (ignored)"
    ]


@pytest.mark.parametrize(("size", "warned"), [(1, False), (2, True), (3, False), (4, True), (5, False)])
def test_an_even_cluster_is_warned_about(size: int, warned: bool) -> None:
    cluster = tuple((f"n{i}", (f"http://n{i}:2380",)) for i in range(size))
    text = " ".join(Config(initial_cluster=cluster).warnings)
    assert ("even number" in text) is warned
    if warned:
        assert f"it survives the loss of {(size - 1) // 2}" in text


def test_help_names_every_flag_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        parse(["--help"], {})
    text = capsys.readouterr().out
    for name in OPTIONS:
        assert f"--{name}" in text
    assert "Examples:" in text


DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
DEFAULTS = [row for row in re.findall(r"^\| `--(\S+)` \| `([^`$]+)` \|", DOCUMENTATION, re.M) if row[1] != "none"]


def test_the_documentation_names_every_flag() -> None:
    for name in OPTIONS:
        assert f"`--{name}`" in DOCUMENTATION
    assert len(DEFAULTS) > 35


@pytest.mark.parametrize(("flag", "default"), DEFAULTS)
def test_what_the_documentation_calls_the_default_changes_nothing(flag: str, default: str) -> None:
    clients = ("--advertise-client-urls", "http://localhost:2379")
    assert parse([f"--{flag}", default, *clients], {}) == parse([*clients], {})


def test_a_later_start_needs_no_initial_cluster_with_this_member_in_it() -> None:
    assert parse(["--name", "n7", "--initial-cluster", THREE], {}).name == "n7"


def test_a_retention_that_its_mode_does_not_know_is_refused() -> None:
    for retention in ("abc", "-1", "1d", ""):
        assert "--auto-compaction-retention" in refusal(f"--auto-compaction-retention={retention}")
    assert "number of revisions" in refusal("--auto-compaction-mode=revision", "--auto-compaction-retention=1h")
    assert parse(["--auto-compaction-retention=90m"], {}).auto_compaction_retention == "90m"


def test_a_quota_above_eight_gibibytes_is_warned_about() -> None:
    assert not parse([f"--quota-backend-bytes={8 << 30}"], {}).warnings
    assert "--quota-backend-bytes" in parse([f"--quota-backend-bytes={9 << 30}"], {}).warnings[0]
    assert parse(["--quota-backend-bytes=-1"], {}).quota_backend_bytes == -1
