"""nginx's configuration for a peer, as text. Pure.

nginx serves files of entries and nothing else: each location names the files that it can reach, paths are normalized
before they are matched, and symbolic links are not followed, because loaders of tenants write into the entries. A file
is sent only after the access service agreed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.peers import CERTIFICATE_FILE, KEY_PATTERN, PRIVATE_KEY_FILE

if TYPE_CHECKING:
    from tonnage.peer_server.settings import PeerSettings

MAX_PROOF_BYTES = 64 << 10
ENTRIES = "/v1/entries"
ACCESS = "/v1/access"
PRIVATE_FILES = {
    "manifest": ".tonnage/manifest.json",
    "ranges": ".tonnage/ranges.json",
    "headers": ".tonnage/headers.bin",
}
"""What is served of an entry's private directory, by its name in URLs."""

_KEY = KEY_PATTERN.replace("(", "(?:")


def render(settings: PeerSettings) -> str:
    """Returns the configuration file of nginx.

    Raises:
        ValueError: A path can't be written into it.
    """
    media = "".join(
        _medium(name, _quoted(str(path)), threads=name != "memory") for name, path in sorted(settings.media.items())
    )
    run = str(settings.run_dir)
    _quoted(run)
    both = " ipv6only=off" if settings.address == "[::]" else ""
    processes = str(settings.processes) if settings.processes else "auto"
    user = "user root;\n" if settings.as_root else ""
    return f"""\
{user}daemon off;
worker_processes {processes};
worker_rlimit_nofile 8192;
worker_shutdown_timeout 20s;
pid "{run}/nginx.pid";
error_log stderr warn;
events {{
    worker_connections 2048;
}}
http {{
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
    etag off;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    max_ranges 1;
    keepalive_timeout 75s;
    keepalive_requests 100000;
    send_timeout 30s;
    client_header_timeout 10s;
    client_body_timeout 10s;
    client_max_body_size {MAX_PROOF_BYTES};
    client_body_buffer_size {MAX_PROOF_BYTES};
    large_client_header_buffers 4 8k;
    client_body_temp_path "{run}/body";
    proxy_temp_path "{run}/proxy";
    fastcgi_temp_path "{run}/fastcgi";
    scgi_temp_path "{run}/scgi";
    uwsgi_temp_path "{run}/uwsgi";
    limit_conn_zone $binary_remote_addr zone=loader:2m;
    limit_conn_zone $server_port zone=all:64k;
    limit_req_zone $binary_remote_addr zone=proofs:2m rate=10r/s;
    limit_conn_status 503;
    limit_req_status 503;
    limit_conn_log_level info;
    limit_req_log_level info;
    upstream access {{
        server "unix:{settings.socket}";
        keepalive 16;
    }}
    server {{
        listen {settings.address}:{settings.port} ssl backlog=1024{both};
        ssl_certificate {_quoted(str(settings.secrets / CERTIFICATE_FILE))};
        ssl_certificate_key {_quoted(str(settings.secrets / PRIVATE_KEY_FILE))};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:2m;
        ssl_session_tickets off;
        ssl_conf_command Options KTLS;
        limit_conn loader {settings.connections_per_loader};
        limit_conn all {settings.connections};
        limit_rate {settings.rate};
        autoindex off;
        location / {{
            return 404;
        }}
        location = /healthz {{
            return 200 "ok\\n";
        }}
        location = {ACCESS} {{
            limit_except POST {{
                deny all;
            }}
            limit_req zone=proofs burst=20 nodelay;
            proxy_pass http://access/access;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host peer;
            proxy_read_timeout 30s;
        }}
        location = /authorize {{
            internal;
            proxy_pass http://access/authorize;
            proxy_http_version 1.1;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_pass_request_headers off;
            proxy_set_header Connection "";
            proxy_set_header Host peer;
            proxy_set_header Content-Length "";
            proxy_set_header Authorization $http_authorization;
            proxy_set_header X-Entry $medium/$key;
            proxy_connect_timeout 2s;
            proxy_read_timeout 5s;
        }}
{media}    }}
}}
"""


def _medium(name: str, root: str, *, threads: bool) -> str:
    """Returns the locations of one medium. Reading a disk must not block a whole worker, so threads do it.

    A file that is published while loaders read it stays at the place that they know.
    """
    files = [
        ("model/(?<file>.+)", "/$key/model/$file"),
        ("partial/(?<folder>[0-9a-f]{16})/(?<file>.+)", "/$key/.tonnage/partial/$folder/model/$file /$key/model/$file"),
        *((public, f"/$key/{private}") for public, private in PRIVATE_FILES.items()),
    ]
    aio = "            aio threads;\n" if threads else ""
    return "".join(
        f"""\
        location ~ "^{ENTRIES}/(?<medium>{name})/(?<key>{_KEY})/{pattern}$" {{
            limit_except GET {{
                deny all;
            }}
            auth_request /authorize;
            root {root};
            disable_symlinks on from=$document_root;
{aio}            try_files {path} =404;
        }}
"""
        for pattern, path in files
    )


def _quoted(path: str) -> str:
    """Returns a path as a quoted string of nginx.

    Raises:
        ValueError: The path has a character that would end it, or begin a variable.
    """
    if any(character in path for character in '"\\$;{}\n\r') or not path.startswith("/"):
        raise ValueError(f"{path!r} can't be used in nginx's configuration")
    return f'"{path}"'
