"""What we saw: metrics, traces and logs of calls, told truthfully and without a line of instrumentation.

    catalogue    every metric, span and event: names, units, attributes
    collect      from what was counted to the points of those metrics
    prometheus   as text for Prometheus, OpenMetrics included; as ASGI and WSGI application
    workers      several workers' counts as one
    otel         to the OpenTelemetry SDK that the program has set up, or one from ``OTEL_*``
    tracing      spans of calls and of what is served
    log, access  lines for ``logging``: one a change of state, and Envoy's access log
    admin        an HTTP server for people and tools
"""
