"""object + layout -> the configuration of HAProxy, the front door of a pod. Pure; same input, same bytes.

TorchServe's frontend has no clean routes, no keys, no usable queue signal and no drain, and is no longer maintained. So it
listens on loopback only, and everything that comes from outside passes here: `/v1/*` goes to the model's routes, and what
cannot be served now is answered in the form OpenAI's clients know. Facts about HAProxy are those of 2.6, Debian 12's.
"""

from __future__ import annotations

import json
from string import Template

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import REPORT_PATH
from lmd_operator.rendering.layout import Layout

BACKEND = "torchserve"
"""Name of the backend in metrics and on the socket; the worker's drain asks for it."""
API_KEYS_FILE = "api-keys"
"""Hashes of the accepted keys, in the run directory; written by the front door's process from the mounted Secret."""
MODEL_VERSION = "1.0"
MAX_REQUEST_BYTES = 8 * 2**20
REFUSED_TOGETHER = 16
"""Places of the frontend's batch beyond all requests that run or wait: for those that the worker refuses."""
SPARE_CONNECTIONS = 128
"""Idle connections beside those that are answered or queued."""
TIMEOUT_MARGIN_SECONDS = 10
"""TorchServe gives up first, so that its own answer reaches the client."""
RETRY_AFTER_SECONDS = 5

_CONFIGURATION = Template("""\
global
    log stdout format raw daemon notice
    nbthread 1
    maxconn $total_connections
    stats socket $socket mode 600 level admin
    stats timeout 30s
    set-var proc.draining int(0)

defaults
    mode http
    log global
    option httplog
    option dontlognull
    option dontlog-normal
    # what a client sends is read before a slot is taken; what it gets is passed on piece by piece
    option http-buffer-request
    option http-no-delay
    # a client that goes leaves the queue
    option abortonclose
    retries 0
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 30s
    timeout client ${patience}s
    timeout server ${patience}s
    timeout queue ${patience}s
    http-error status 400 content-type application/json string '$malformed'
    http-error status 408 content-type application/json string '$too_slow'
    http-error status 500 content-type application/json string '$broken'
    http-error status 502 content-type application/json string '$went_away' hdr retry-after $retry_after
    http-error status 503 content-type application/json string '$not_ready' hdr retry-after $retry_after
    http-error status 504 content-type application/json string '$no_answer'

frontend api
    bind :$api_port
    maxconn $connections
    # while draining every answer ends its connection; the listener stays open for those that come late
    http-after-response set-header connection close if { var(proc.draining) -m int 1 }
    http-response del-header ts_stream_next
    http-response set-header cache-control no-cache if { res.hdr(content-type) -m beg text/event-stream }
    http-response set-header x-accel-buffering no if { res.hdr(content-type) -m beg text/event-stream }
    # no dots at the start of a segment, no escapes: nothing but the model's own routes can be reached
    acl is_route $routes
    http-request return status 404 content-type application/json string '$no_route' unless is_route
$key_rules    acl is_method method GET POST
    http-request return status 405 content-type application/json string '$no_method' hdr allow "GET, POST" unless is_method
    acl is_large req.hdr(content-length) -m int gt $max_request_bytes
    acl is_full queue($backend) ge $queue_size
    http-request return status 413 content-type application/json string '$too_large' if is_large
    http-request return status 503 content-type application/json string '$queue_full' hdr retry-after $retry_after if is_full
    http-request del-header authorization
$rewrites
    default_backend $backend

backend $backend
    # up when the frontend is healthy and its worker says READY; closed by linger, as TorchServe logs a reset as an error
    option httpchk
    http-check connect port $inference_port linger
    http-check send meth GET uri /ping ver HTTP/1.1 hdr host localhost hdr connection close
    http-check expect status 200
    http-check connect port $management_port linger
    http-check send meth GET uri /models/$model ver HTTP/1.1 hdr host localhost hdr connection close
    http-check expect rstring "\\"status\\": \\"READY\\""
    default-server check inter 1s fastinter 500ms downinter 500ms fall 2 rise 1
    server worker 127.0.0.1:$inference_port maxconn $places

defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s

frontend operations
    bind :$operations_port
    http-request return status 200 content-type text/plain string "alive\\n" if { path /livez }
    http-request return status 503 content-type text/plain string "draining\\n" if { path /readyz } { var(proc.draining) -m int 1 }
    http-request return status 503 content-type text/plain string "the worker is not ready\\n" if { path /readyz } { nbsrv($backend) lt 1 }
    http-request return status 200 content-type text/plain string "ready\\n" if { path /readyz }
    http-request use-service prometheus-exporter if { path /metrics }
    http-request return status 404 unless { path /metrics/torchserve$report_path }
$report_rule    default_backend torchserve-metrics

backend torchserve-metrics
    http-request set-path /metrics
    server metrics 127.0.0.1:$metrics_port
$report_backend""")

_ROUTES = "path_reg ^/v1(/[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*)+$"
_REWRITES = Template("""\
    # TorchServe would read JSON that is called a form, as curl calls it, as a form
    http-request set-header content-type application/json if METH_POST
    http-request set-pathq /predictions/$model/$version%[path]""")
_UNCHANGED = "    # a handler of the user's own gets its requests as clients send them, by TorchServe's own route"
_KEY_RULES = Template("""\
    acl has_key http_auth_bearer,sha2(256),hex,lower -m str -f $keys
    http-request return status 401 content-type application/json string '$no_key' hdr www-authenticate Bearer unless has_key
""")


_REPORT_RULE = f"""\
    use_backend torchserve-report if {{ path {REPORT_PATH} }}
"""
_REPORT_BACKEND = Template("""
backend torchserve-report
    # one place in the worker at most, whoever asks
    http-request deny deny_status 405 unless METH_GET
    http-request set-pathq /predictions/$model/$version/lmd/report
    http-request del-header authorization
    server worker 127.0.0.1:$inference_port maxconn 1
""")


def front_door(deployment: LargeModelDeployment, layout: Layout) -> str:
    """Return haproxy.cfg of one object."""
    engine = deployment.spec.engine
    places = places_in_worker(deployment)
    connections = places + REFUSED_TOGETHER + SPARE_CONNECTIONS
    has_keys = deployment.spec.endpoint.api_keys_secret_ref is not None
    is_ours = deployment.spec.handler is None
    model_route = {"model": deployment.model_name, "version": MODEL_VERSION}
    return _CONFIGURATION.substitute(
        socket=layout.front_door_socket,
        connections=connections,
        total_connections=connections + SPARE_CONNECTIONS,
        patience=engine.torch_serve.response_timeout_seconds + TIMEOUT_MARGIN_SECONDS,
        routes=_ROUTES if is_ours else f"path /predictions/{deployment.model_name}",
        rewrites=_REWRITES.substitute(model_route) if is_ours else _UNCHANGED,
        report_path=f" {REPORT_PATH}" if is_ours else "",
        report_rule=_REPORT_RULE if is_ours else "",
        report_backend=_REPORT_BACKEND.substitute(model_route, inference_port=layout.inference_port) if is_ours else "",
        key_rules=_key_rules(layout) if has_keys else "",
        api_port=layout.api_port,
        operations_port=layout.operations_port,
        inference_port=layout.inference_port,
        management_port=layout.management_port,
        metrics_port=layout.metrics_port,
        backend=BACKEND,
        model=deployment.model_name,
        places=places,
        queue_size=REFUSED_TOGETHER,
        max_request_bytes=MAX_REQUEST_BYTES,
        retry_after=RETRY_AFTER_SECONDS,
        malformed=_error(400, "invalid_request_error", "the request is not valid HTTP"),
        too_slow=_error(408, "invalid_request_error", "the request did not arrive in time"),
        broken=_error(500, "server_error", "the front door failed"),
        went_away=_error(502, "server_error", "the model went away while it answered; try again"),
        not_ready=_error(503, "server_error", "the model is not ready, or the request waited too long; try again"),
        no_answer=_error(504, "server_error", "the model did not answer in time"),
        no_route=_error(404, "invalid_request_error", "no such route; the API is below /v1"),
        no_method=_error(405, "invalid_request_error", "only GET and POST are allowed"),
        too_large=_error(413, "invalid_request_error", f"the request is larger than {MAX_REQUEST_BYTES} bytes"),
        queue_full=_error(503, "server_error", "too many requests are waiting; try again"),
    )


def places_in_worker(deployment: LargeModelDeployment) -> int:
    """Return how many requests the worker takes: those it runs, those that wait in its own queue, and those it refuses."""
    engine = deployment.spec.engine
    return engine.concurrency + engine.torch_serve.job_queue_size + REFUSED_TOGETHER


def _key_rules(layout: Layout) -> str:
    no_key = _error("invalid_api_key", "invalid_request_error", "send a valid API key as a bearer token")
    return _KEY_RULES.substitute(keys=f"{layout.run}/{API_KEYS_FILE}", no_key=no_key)


def _error(code: int | str, kind: str, message: str) -> str:
    """Return the body of an error as OpenAI's clients read it. It goes between single quotes."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
