"""Envoy's configuration: REST, gRPC-Web and gRPC in front of the services, and the page from the same origin.

Field names are those of https://www.envoyproxy.io/docs/envoy/latest/api-v3/api.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from computemesh.service.addresses import host_port
from computemesh.trust.errors import InvalidArgument
from edge.config import Config
from edge.contracts import SERVICES, descriptor_set, methods

UNARY_TIMEOUT_S = 60
STREAM_IDLE_S = 3600
HEADERS_TIMEOUT_S = 10
MAX_PAGE_FILE_BYTES = 1024 * 1024
# What the services allow on one connection (computemesh.service.server): more calls take more connections.
UPSTREAM_STREAMS = 16

_TYPES = "type.googleapis.com/envoy.extensions."
_CONTENT_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
                  ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".json": "application/json"}  # fmt: skip
# The page runs its own files only; pictures and animations come as blobs it made of artifacts.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src blob:; object-src 'none'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}  # fmt: skip
# google.rpc.Code of what Envoy itself answers.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 413: 8, 415: 3, 426: 3, 429: 8, 431: 8, 500: 13, 501: 12, 502: 14,
          503: 14, 504: 4}  # fmt: skip

# The REST API of the task market we come from answers with the task itself, has short status names in its filter and a
# number as its total; the contracts' JSON has {"task": ...}, TASK_STATUS_... and, as all 64-bit integers, a string.
# What is cut off is the answer's only field, and the total is its last.
_SHORT_FORMS = """
function envoy_on_request(handle)
  local method, path = handle:headers():get(":method"), handle:headers():get(":path")
  local route = path:match("^[^?]*")
  for _, stream in ipairs({STREAMS}) do
    if route:find(stream) then handle:streamInfo():dynamicMetadata():set("edge", "short", "stream") end
  end
  if route == "/tasks" and method == "GET" then
    handle:streamInfo():dynamicMetadata():set("edge", "short", "total")
    handle:headers():replace(":path", (path:gsub("([?&]status=)([%a_]+)", function(key, name)
      local status = name:upper()
      if not status:find("^TASK_STATUS_") then status = "TASK_STATUS_" .. status end
      return key .. status
    end)))
  elseif (route == "/tasks" and method == "POST") or (route:find("^/tasks/[^/:]+$") and method == "GET")
      or (route:find("^/tasks/[^/:]+:cancel$") and method == "POST") then
    handle:streamInfo():dynamicMetadata():set("edge", "short", "task")
  end
end
function envoy_on_response(handle)
  local short = (handle:streamInfo():dynamicMetadata():get("edge") or {})["short"]
  if not short or handle:headers():get(":status") ~= "200" then return end
  if short == "stream" then
    handle:headers():replace("content-type", "application/x-ndjson")
    return
  end
  local body = handle:body()
  local text = body:getBytes(0, body:length())
  if short == "total" then
    text = text:gsub('"total":"(%d+)"}%s*$', '"total":%1}')
  else
    text = text:match('^{"task":({.*})}%s*$') or text
  end
  handle:headers():replace("content-length", body:setBytes(text))
end
"""


def bootstrap(config: Config) -> dict[str, Any]:
    """Envoy's bootstrap document. Raises InvalidArgument naming what of `config` cannot be used."""
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise _bad("tls_key", "and tls_certificate go together: give both, or none")
    for name in ("tls_certificate", "tls_key", "tls_ca_file", "page", "openapi", "api_key_file"):
        value = getattr(config, name)
        if value and not Path(value).exists():
            raise _bad(name, f"is {value!r}, which does not exist")
    upstreams = {name: getattr(config, name) for name in ("market", "ledger", "orchestrator")}
    return {
        "static_resources": {
            "listeners": [_listener(config)],
            "clusters": [_cluster(config, name, address) for name, address in upstreams.items()],
        },
        # One request of a connection per turn, and connections that reset most of their streams at once are ended:
        # those who open and reset streams without end neither hold up others nor stay.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {
            "http.max_requests_per_io_cycle": 1, "overload.premature_reset_total_stream_count": 50}}]},
        "overload_manager": {
            "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": _TYPES + "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": config.max_connections},
            }],
        },
    }  # fmt: skip


def _bad(name: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"configuration: {name} {problem}", violations=[(name, problem)],
                           reason="INVALID_CONFIGURATION")  # fmt: skip


def split(name: str, address: str) -> tuple[str, int]:
    parts = host_port(address)
    if parts is None or not parts[1]:
        raise _bad(name, f"is {address!r}, expected HOST:PORT")
    return parts[0].strip("[]"), parts[1]


def _socket(name: str, address: str) -> dict[str, Any]:
    host, port = split(name, address)
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(config: Config) -> dict[str, Any]:
    chain: dict[str, Any] = {"filters": [{
        "name": "http", "typed_config": {
            "@type": _TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "edge",
            "codec_type": "AUTO",
            "strip_any_host_port": True,
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "use_remote_address": True,
            "server_name": "computemesh",
            "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
            "stream_idle_timeout": f"{UNARY_TIMEOUT_S}s",
            "common_http_protocol_options": {"idle_timeout": "300s", "max_headers_count": 100,
                                             "headers_with_underscores_action": "REJECT_REQUEST"},
            "http2_protocol_options": {"max_concurrent_streams": config.max_streams},
            "http_filters": _filters(config),
            "route_config": _routes(config),
            "local_reply_config": _local_replies(),
        },
    }]}  # fmt: skip
    if config.tls_certificate:
        chain["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": _TYPES + "transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                **_own_certificate(config),
            },
        }}  # fmt: skip
    return {"name": "edge", "address": _socket("listen", config.listen), "filter_chains": [chain],
            "access_log": [_violators()],
            "per_connection_buffer_limit_bytes": max(config.max_request_bytes, 65536)}  # fmt: skip


def _violators() -> dict[str, Any]:
    """A line to standard output with the address of whoever had a connection ended for a breach of HTTP."""
    return {
        "name": "violators",
        "filter": {"response_flag_filter": {"flags": ["DPE"]}},
        "typed_config": {
            "@type": _TYPES + "access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"text_format_source": {"inline_string": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\n"}},
        },
    }  # fmt: skip


def _filter(name: str, kind: str, **values: Any) -> dict[str, Any]:
    typed = {"@type": f"{_TYPES}filters.http.{name}.v3.{kind}", **values}
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _filters(config: Config) -> list[dict[str, Any]]:
    return [
        _filter("cors", "Cors"),
        _filter("rbac", "RBAC", rules={"action": "DENY", "policies": {"foreign_origin": _foreign_origin(config)}}),
        _filter("lua", "Lua", default_source_code={"inline_string": _short_forms()}),
        _filter("buffer", "Buffer", max_request_bytes=config.max_request_bytes),
        _filter("grpc_web", "GrpcWeb"),
        _filter(
            "grpc_json_transcoder", "GrpcJsonTranscoder",
            proto_descriptor_bin=base64.b64encode(descriptor_set()).decode(),
            services=list(SERVICES),
            print_options={"always_print_primitive_fields": True, "preserve_proto_field_names": True,
                           "stream_newline_delimited": True},
            convert_grpc_status=True,
            case_insensitive_enum_parsing=True,
            request_validation_options={"reject_unknown_method": True, "reject_unknown_query_parameters": True,
                                        "reject_binding_body_field_collisions": True},
            max_response_body_size=64 * 1024 * 1024,
        ),
        _filter("router", "Router"),
    ]  # fmt: skip


def _short_forms() -> str:
    """The Lua filter; the transcoder calls its streams JSON, which they are a line at a time."""
    streams = [re.sub(r"\{[^}]*\}", "[^/]+", method.path) for method in methods() if method.streams and method.path]
    return _SHORT_FORMS.replace("STREAMS", ", ".join(f'"^{path}$"' for path in streams))


def _foreign_origin(config: Config) -> dict[str, Any]:
    """A browser says which page makes a request. Pages of other origins may not use the key that we add, nor spend a
    user's; clients that are no browsers send no origin."""
    names = "|".join(re.escape(host) for host in _hosts(config))
    port = split("advertise", config.advertise)[1]
    own = {"safe_regex": {"regex": f"https?://({names})(:{port})?"}}
    allowed = [own, *({"exact": origin} for origin in config.cors_origins)]
    return {
        "principals": [{"any": True}],
        "permissions": [{"and_rules": {"rules": [
            {"header": {"name": "origin", "present_match": True}},
            *({"not_rule": {"header": {"name": "origin", "string_match": match}}} for match in allowed),
        ]}}],
    }  # fmt: skip


def _hosts(config: Config) -> list[str]:
    own = ("127.0.0.1", "localhost", split("advertise", config.advertise)[0])
    return sorted({*own, *config.hosts} - {"*"})


def _routes(config: Config) -> dict[str, Any]:
    host: dict[str, Any] = {
        "name": "edge",
        "domains": ["*"] if "*" in config.hosts else _hosts(config),
        "routes": [*_page_routes(config), *_call_routes()],
    }
    if config.api_key_file:
        key = Path(config.api_key_file).read_text("utf-8").strip()
        host["request_headers_to_add"] = [{"header": {"key": "authorization", "value": f"Bearer {key}"},
                                           "append_action": "ADD_IF_ABSENT"}]  # fmt: skip
    if config.cors_origins:
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": {
            "@type": _TYPES + "filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": origin} for origin in config.cors_origins],
            "allow_methods": "GET, POST, DELETE",
            "allow_headers": "authorization, content-type, x-grpc-web, x-user-agent, grpc-timeout, traceparent",
            "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin",
            "max_age": "600",
        }}  # fmt: skip
    unknown = "the edge does not go by this host name; its configuration lists those it does in hosts"
    others = [] if "*" in config.hosts else [{"name": "other", "domains": ["*"], "routes": [_nothing_here(unknown)]}]
    return {"name": "edge", "virtual_hosts": [host, *others],
            "max_direct_response_body_size_bytes": MAX_PAGE_FILE_BYTES}  # fmt: skip


def _page_routes(config: Config) -> list[dict[str, Any]]:
    """Each file of the page at its own path: Envoy reads them at its start, and no request names a file."""
    files = {"/openapi.json": Path(config.openapi)} if config.openapi else {}
    folder = Path(config.page)
    if config.page:
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files |= {f"/{path.relative_to(folder).as_posix()}": path for path in inside}
        files["/"] = folder / "index.html"
    return [{
        "match": {"path": at},
        "direct_response": {"status": 200, "body": {"filename": str(path.resolve())}},
        "typed_per_filter_config": {"envoy.filters.http.grpc_json_transcoder": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}},
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in {"content-type": _CONTENT_TYPES.get(path.suffix, "text/plain; charset=utf-8"),
                               **_PAGE_HEADERS}.items()
        ],
    } for at, path in files.items()]  # fmt: skip


def _call_routes() -> list[dict[str, Any]]:
    """Where calls go once the transcoder gave them their RPC's path. Repeated is only what never reached a service."""
    retry = {"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 2}
    calls = [{
        "match": {"path": f"/{method.service}/{method.name}"},
        "route": {
            "cluster": method.upstream,
            "retry_policy": retry,
            **({"timeout": "0s", "idle_timeout": f"{STREAM_IDLE_S}s"} if method.streams
               else {"timeout": f"{UNARY_TIMEOUT_S}s"}),
        },
    } for method in methods()]  # fmt: skip
    streams = _nothing_here("streams from the client do not pass the edge: dial the service itself", "/computemesh.")
    # REST paths, before the transcoder knows them: it refuses what is none, so nothing goes this way.
    rest = {"match": {"prefix": "/"}, "route": {"cluster": "market"}}
    return [*calls, streams, rest]


def _nothing_here(why: str, prefix: str = "/") -> dict[str, Any]:
    return {"match": {"prefix": prefix}, "direct_response": {"status": 404, "body": {"inline_string": why}}}


def _local_replies() -> dict[str, Any]:
    """What Envoy itself answers in error is a google.rpc.Status too; 403 is only ever the foreign origin's."""
    said = {403: "a page of another origin made this request; the edge's configuration lists others in cors_origins"}
    return {"mappers": [{
        "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": {
            "default_value": status, "runtime_key": f"edge.status_{status}"}}}},
        "body_format_override": {
            "json_format": {"code": code, "message": said.get(status, "%LOCAL_REPLY_BODY%"), "details": []},
            "content_type": "application/json",
        },
    } for status, code in _CODES.items()]}  # fmt: skip


def _cluster(config: Config, name: str, address: str) -> dict[str, Any]:
    replicas = [one.strip() for one in address.split(",")]
    limit = {"max_connections": max(1, config.max_calls // UPSTREAM_STREAMS), "max_requests": config.max_calls,
             "max_pending_requests": config.max_calls, "max_retries": 16}  # fmt: skip
    return {
        **(_upstream_tls(config, split(name, replicas[0])[0]) if config.tls_ca_file else {}),
        **(_which_serves() if len(replicas) > 1 else {}),
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [limit]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _TYPES + "upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": UPSTREAM_STREAMS}},
        }},
        "load_assignment": {"cluster_name": name, "endpoints": [{
            "lb_endpoints": [{"endpoint": {"address": _socket(name, one)}} for one in replicas]}]},
    }  # fmt: skip


def _which_serves() -> dict[str, Any]:
    """Replicas that stand by refuse connections; calls go to those that say they serve."""
    return {
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [{
            "timeout": "2s", "interval": "1s", "no_traffic_interval": "1s", "unhealthy_threshold": 1,
            "healthy_threshold": 1, "grpc_health_check": {}}],
    }  # fmt: skip


def _upstream_tls(config: Config, host: str) -> dict[str, Any]:
    """The service has to show a certificate of the CA for the host that it is dialled by; it may ask for ours."""
    numeric = host.replace(".", "").isdecimal() or ":" in host
    return {"transport_socket": {"name": "tls", "typed_config": {
        "@type": _TYPES + "transport_sockets.tls.v3.UpstreamTlsContext",
        **({} if numeric else {"sni": host}),
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            **_own_certificate(config),
            "validation_context": {
                "trusted_ca": {"filename": config.tls_ca_file},
                "match_typed_subject_alt_names": [
                    {"san_type": "IP_ADDRESS" if numeric else "DNS", "matcher": {"exact": host}}],
            },
        },
    }}}  # fmt: skip


def _own_certificate(config: Config) -> dict[str, Any]:
    if not config.tls_certificate:
        return {}
    return {"tls_certificates": [{"certificate_chain": {"filename": config.tls_certificate},
                                  "private_key": {"filename": config.tls_key}}]}  # fmt: skip
