//! The words of HTTP/1.1 as nodes speak it: bytes to a request, a reply's head to bytes.
//!
//! Touches nothing. `httparse` reads the syntax; what is decided here is what a request may mean,
//! and everything that two parsers could read in two ways is refused. A body comes with a length;
//! nothing that reports to a bastion sends chunks.
//!
//! Ugly facts: iPXE writes a host without brackets for IPv6 and sends no `Accept`; EDK2 repeats
//! its HEAD as a GET on the same connection; Ignition has no header of its own and is known by
//! `User-Agent`.

use bytes::BytesMut;

use super::Refusal;

/// Longest request head: a path, a token and a browser's worth of headers.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Longest body that anything here reads.
pub const BODY_BYTES_MAX: u64 = 64 * 1024;
const HEADERS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
}

/// What a node asked, owned, with the few headers that any room here reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// As sent: absolute, percent-encoding untouched, without the query.
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub authorization: Option<String>,
    pub user_agent: String,
    pub content_type: String,
    pub content_length: u64,
    pub expects_continue: bool,
    pub keep_alive: bool,
}

/// What the bytes at hand amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole head yet.
    Partial,
    /// A head of so many bytes.
    Whole(Box<Request>, usize),
    Refused(Refusal),
}

/// Reads the request head that the bytes begin with.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    // The buffer is never longer than a head may be plus what was pipelined behind it.
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    match head.parse(window) {
        Ok(httparse::Status::Complete(length)) => match meaning(&head) {
            Ok(request) => Parsed::Whole(Box::new(request), length),
            Err(refusal) => Parsed::Refused(refusal),
        },
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Parsed::Refused(Refusal::HeadTooLarge)
        }
        Err(httparse::Error::Version) => Parsed::Refused(Refusal::Version),
        Err(_) => Parsed::Refused(Refusal::Malformed),
    }
}

fn meaning(head: &httparse::Request<'_, '_>) -> Result<Request, Refusal> {
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => return Err(Refusal::Method),
    };
    let (path, query) = target(head.path.unwrap_or_default())?;
    let newer = head.version == Some(1);
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        if_range: None,
        if_match: None,
        if_none_match: None,
        authorization: None,
        user_agent: String::new(),
        content_type: String::new(),
        content_length: 0,
        expects_continue: false,
        // RFC 9112 section 9.3: persistence is the default of HTTP/1.1 and not of HTTP/1.0.
        keep_alive: newer,
    };
    let mut hosts = 0;
    let mut length = None;
    for header in head.headers.iter() {
        read_header(&mut request, header, &mut hosts, &mut length)?;
    }
    // RFC 9112 section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any
    // HTTP/1.1 request message that lacks a Host header field and to any request message that
    // contains more than one Host header field line".
    if hosts > 1 || (newer && hosts == 0) {
        return Err(Refusal::Malformed);
    }
    request.content_length = length.unwrap_or(0);
    if request.content_length > BODY_BYTES_MAX {
        return Err(Refusal::BodyTooLarge);
    }
    Ok(request)
}

fn read_header(
    request: &mut Request,
    header: &httparse::Header<'_>,
    hosts: &mut usize,
    length: &mut Option<u64>,
) -> Result<(), Refusal> {
    let is = |name: &str| header.name.eq_ignore_ascii_case(name);
    let text = || {
        let value = str::from_utf8(header.value).map_err(|_| Refusal::Malformed)?;
        Ok(value.trim_matches([' ', '\t']).to_owned())
    };
    match header.name.len() {
        4 if is("host") => *hosts += 1,
        5 if is("range") => request.range = Some(text()?),
        6 if is("expect") => {
            request.expects_continue = text()?.eq_ignore_ascii_case("100-continue")
        }
        8 if is("if-range") => request.if_range = Some(text()?),
        8 if is("if-match") => request.if_match = Some(text()?),
        10 if is("user-agent") => request.user_agent = text()?,
        10 if is("connection") => {
            for option in text()?.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    request.keep_alive = false;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    request.keep_alive = true;
                }
            }
        }
        12 if is("content-type") => request.content_type = text()?,
        13 if is("authorization") => request.authorization = Some(text()?),
        13 if is("if-none-match") => request.if_none_match = Some(text()?),
        14 if is("content-length") => {
            let digits = text()?;
            // `u64::from_str` would take a plus sign.
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Refusal::Malformed);
            }
            let value = digits.parse().map_err(|_| Refusal::BodyTooLarge)?;
            // Two lengths are how one request is smuggled inside another.
            if length.replace(value).is_some() {
                return Err(Refusal::Malformed);
            }
        }
        17 if is("transfer-encoding") => return Err(Refusal::BodyWithoutLength),
        _ => {}
    }
    Ok(())
}

/// The path and the query of a request target.
fn target(text: &str) -> Result<(&str, &str), Refusal> {
    // RFC 9112 section 3.2.2: "a server MUST accept the absolute-form in requests even though
    // most HTTP/1.1 clients will only send the absolute-form in requests to proxies".
    let origin = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => match rest.find('/') {
            Some(slash) => &rest[slash..],
            None => "/",
        },
        _ => text,
    };
    if !origin.starts_with('/')
        || origin.contains('#')
        || !origin.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(Refusal::Malformed);
    }
    Ok(origin.split_once('?').unwrap_or((origin, "")))
}

/// Writes a reply's head. `length` is what a GET of it carries.
pub(super) fn write_head(
    out: &mut BytesMut,
    status: u16,
    headers: &[(&str, &str)],
    length: u64,
    keep_alive: bool,
) {
    // RFC 9110 section 8.6: "A server MUST NOT send a Content-Length header field in any response
    // with a status code of 1xx (Informational) or 204 (No Content)".
    let length = (status != 204).then_some(length);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status_line(status).as_bytes());
    out.extend_from_slice(b"\r\nServer: reveille\r\nDate: ");
    out.extend_from_slice(date().as_bytes());
    if let Some(length) = length {
        out.extend_from_slice(b"\r\nContent-Length: ");
        out.extend_from_slice(length.to_string().as_bytes());
    }
    for (name, value) in headers {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(match keep_alive {
        true => b"\r\nConnection: keep-alive\r\n\r\n",
        false => b"\r\nConnection: close\r\n\r\n",
    });
}

/// RFC 9110 section 6.6.1: "An origin server with a clock MUST generate a Date header field".
fn date() -> String {
    jiff::Timestamp::now()
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

fn status_line(status: u16) -> &'static str {
    match status {
        200 => "200 OK",
        204 => "204 No Content",
        206 => "206 Partial Content",
        304 => "304 Not Modified",
        400 => "400 Bad Request",
        401 => "401 Unauthorized",
        403 => "403 Forbidden",
        404 => "404 Not Found",
        405 => "405 Method Not Allowed",
        408 => "408 Request Timeout",
        409 => "409 Conflict",
        411 => "411 Length Required",
        412 => "412 Precondition Failed",
        413 => "413 Content Too Large",
        416 => "416 Range Not Satisfiable",
        431 => "431 Request Header Fields Too Large",
        503 => "503 Service Unavailable",
        505 => "505 HTTP Version Not Supported",
        _ => "500 Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn whole(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Parsed::Whole(request, length) => {
                assert_eq!(length, text.len());
                *request
            }
            other @ (Parsed::Partial | Parsed::Refused(_)) => panic!("{text:?} gave {other:?}"),
        }
    }

    #[track_caller]
    fn refused(text: &str, refusal: Refusal) {
        assert_eq!(parse(text.as_bytes()), Parsed::Refused(refusal), "{text:?}");
    }

    #[test]
    fn a_request_in_any_of_the_forms_that_clients_send_is_understood() {
        let ipxe = whole(
            "GET /boot/x/script.ipxe?a=b HTTP/1.1\r\nUser-Agent: iPXE/1.0.0+\r\nHost: 10.107.0.1:8080\r\n\r\n",
        );
        assert_eq!(
            (ipxe.path.as_str(), ipxe.query.as_str()),
            ("/boot/x/script.ipxe", "a=b")
        );
        assert!(ipxe.keep_alive);
        assert!(!whole("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(whole("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(!whole("GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, close\r\n\r\n").keep_alive);
        assert_eq!(
            whole("GET http://a:8080/b?c HTTP/1.1\r\nHost: a\r\n\r\n").path,
            "/b"
        );
        assert_eq!(whole("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n").path, "/");
        assert_eq!(
            whole("HEAD /a HTTP/1.1\r\nhost:a\r\nRANGE:\tbytes=1- \r\n\r\n")
                .range
                .as_deref(),
            Some("bytes=1-")
        );
        assert_eq!(
            whole("POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").content_length,
            12
        );
    }

    #[test]
    fn what_two_parsers_could_read_in_two_ways_is_refused() {
        refused("GET / HTTP/1.1\r\n\r\n", Refusal::Malformed);
        refused(
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            Refusal::Malformed,
        );
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            Refusal::Malformed,
        );
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            Refusal::Malformed,
        );
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            Refusal::Malformed,
        );
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            Refusal::BodyWithoutLength,
        );
        refused(
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            Refusal::Malformed,
        );
        refused("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Malformed);
        refused("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Malformed);
    }

    #[test]
    fn each_limit_is_refused_under_its_own_name() {
        refused("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Method);
        refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::Version);
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n",
            Refusal::BodyTooLarge,
        );
        refused(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            Refusal::BodyTooLarge,
        );
        refused(
            &format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_BYTES_MAX)),
            Refusal::HeadTooLarge,
        );
        refused(
            &format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65)),
            Refusal::HeadTooLarge,
        );
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost"), Parsed::Partial);
    }

    #[test]
    fn a_head_ends_with_an_empty_line_and_says_its_length_once() {
        let mut out = BytesMut::new();
        write_head(&mut out, 206, &[("ETag", "\"x\"")], 7, true);
        let text = str::from_utf8(&out).expect("text");
        assert!(
            text.starts_with("HTTP/1.1 206 Partial Content\r\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\r\nETag: \"x\"\r\nConnection: keep-alive\r\n\r\n"),
            "{text}"
        );
        assert_eq!(text.matches("Content-Length: 7\r\n").count(), 1);
    }
}
