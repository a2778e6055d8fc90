"""Where log lines go and what they look like: text for people, JSON with etcd's field names for machines."""

import json
import logging
import sys
import time

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}


def set_up(level: str, log_format: str) -> None:
    """Send everything from `level` (debug, info, warn, error) on to stderr, as "text" or "json" lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    # A broken stderr must not print a traceback to the same stderr for every line.
    logging.raiseExceptions = False
    if level != "debug":
        for library in ("asyncio", "grpc"):
            logging.getLogger(library).setLevel(logging.WARNING)


def timestamp(created: float) -> str:
    """Format seconds since the epoch as UTC with microseconds."""
    seconds, microseconds = divmod(round(created * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{microseconds:06d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What a line says in fields of their own: `extra={"fields": …}`."""
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """`time level module: message field=value …`, then the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("raftkv.")
        level = _NAMES.get(record.levelno, record.levelname.lower())
        line = f"{timestamp(record.created)} {level:5} {name}: {record.getMessage()}"
        line += "".join(f" {field}={value!r}" for field, value in _fields(record).items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: level, ts, caller, msg, the line's own fields, and stacktrace if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "ts": timestamp(record.created),
            "caller": f"{record.module}.py:{record.lineno}",
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            fields["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
