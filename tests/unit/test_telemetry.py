"""Metrics in both formats, and logs that a program can read."""

import json
import logging

from mesh_agent.telemetry import JsonFormatter, Metrics


def test_prometheus_text_has_types_labels_and_escapes() -> None:
    metrics = Metrics()
    metrics.describe("mesh_dns_queries_total", "DNS queries.")
    metrics.count("mesh_dns_queries_total", rcode="NOERROR")
    metrics.count("mesh_dns_queries_total", rcode="NOERROR")
    metrics.collect(lambda: [("mesh_members", {"pool": 'l"an'}, 3.0)])
    text = metrics.prometheus()
    assert "# HELP mesh_dns_queries_total DNS queries.\n# TYPE mesh_dns_queries_total counter\n" in text
    assert 'mesh_dns_queries_total{rcode="NOERROR"} 2\n' in text
    assert 'mesh_members{pool="l\\"an"} 3\n' in text


def test_consuls_json_has_gauges_and_counters() -> None:
    metrics = Metrics()
    metrics.gauge("g", 1.5, a="b")
    metrics.count("c_total")
    found = metrics.consul(0.0)
    assert found["Gauges"] == [{"Name": "g", "Value": 1.5, "Labels": {"a": "b"}}]
    assert found["Timestamp"] == "1970-01-01 00:00:00 +0000 UTC"


def test_a_log_line_is_one_json_object_with_its_extras() -> None:
    record = logging.makeLogRecord(
        {"name": "mesh_agent.dns", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "a\nb %s", "args": ("c",)}
    )
    record.peer = "n1"
    line = JsonFormatter(journal=True).format(record)
    assert line.startswith("<4>")
    fields = json.loads(line.removeprefix("<4>"))
    assert fields["message"] == "a\nb c"
    assert fields["peer"] == "n1"
    assert fields["logger"] == "dns"
    assert "\n" not in line
