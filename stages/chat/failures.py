"""What a failure of an endpoint means for its user, in one line that says how to fix it.

status_message(endpoint, 404, "no such model", has_key=True, out_of_credit=False, tries=1)
connection_message(endpoint, error, tries=5)
"""

from urllib.parse import urlsplit

from stages.chat.protocol import Endpoint

_CUT_OFF = {
    *("RemoteProtocolError", "ReadError", "ClientPayloadError"),
    *("ServerDisconnectedError", "ContentLengthError"),
}


def status_message(
    endpoint: Endpoint, status: int, text: str, has_key: bool, out_of_credit: bool, tries: int
) -> str:
    """About an HTTP status; `text` is the server's message, `tries` how often it refused (429)."""
    variable, called = endpoint.api_key_env, endpoint.called
    text = f": {text}" if text else ""
    if status == 401:
        state = "holds a wrong key" if has_key else "is not set"
        return (
            f"{endpoint} answered 401, not authorised: the environment variable {variable} {state}"
        )
    if status == 403:
        return f"{endpoint} answered 403{text}; the key in {variable} has no access to this model"
    if status == 404:
        settings = f"`{called('model')}` or `{called('base_url')}` in {endpoint.given_in}"
        return f"{endpoint} answered 404{text}; fix {settings}"
    if status in (400, 422):
        settings = f"`{called('model')}`, a sampling setting or `{called('max_tokens')}`"
        return f"{endpoint} refused the request with {status}{text}; fix {settings}"
    if status == 429 and out_of_credit:
        return f"{endpoint} answered 429{text}; the account of the key in {variable} has no credit"
    if status == 429:
        fix = f"lower {called('concurrency')} or raise the account's limit"
        return f"{endpoint} answered 429 {tries} times{text}; {fix}"
    return f"{endpoint} answered {status}{text}; run again when the server has recovered"


def connection_message(endpoint: Endpoint, error: Exception, tries: int) -> str:
    """About a broken connection: `error` is httpx2's or ssl's, met in each of `tries` tries."""
    import httpx2

    called = endpoint.called
    # The aiohttp transport calls every failed connection a ConnectTimeout: only a slow answer has
    # to do with timeout_s.
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return (
            f"{endpoint} took longer than {endpoint.timeout_s:g} s, {tries} times: "
            f"raise {called('timeout_s')} or lower {called('concurrency')}"
        )

    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    kinds, root = {type(cause).__name__ for cause in causes}, causes[-1]
    if any("Certificate" in kind or "SSL" in kind for kind in kinds):
        detail = (
            getattr(root, "verify_message", None)
            or getattr(root, "reason", None)
            or type(root).__name__
        )
        return (
            f"{endpoint} has no valid TLS certificate ({detail}): fix {called('base_url')}, or the "
            "server's certificate (SSL_CERT_FILE)"
        )
    if any("DNS" in kind for kind in kinds) or type(root).__name__ == "gaierror":
        host = urlsplit(endpoint.base_url).hostname
        return (
            f"{endpoint}: the name `{host}` isn't known to DNS: "
            f"fix {called('base_url')} or the network"
        )
    if kinds & _CUT_OFF:
        return (
            f"{endpoint} broke the connection in the middle of a reply, {tries} times: "
            "see the server's log"
        )
    detail = getattr(root, "strerror", None) or type(root).__name__
    return f"{endpoint} can't be reached ({detail}): start the server or fix {called('base_url')}"
