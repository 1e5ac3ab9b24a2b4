//! By which address a node was asked, for examples that whoever has asked can use as they stand.

use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// What examples have where it is not known.
pub const USUAL: &str = "http://127.0.0.1:8080";
/// The longest host and port: names have 253 bytes at the most.
const LONGEST: usize = 260;

/// The address of this node as the client has it, `tls` being how it is reached directly. Only what is surely one: it comes
/// from outside, and stands in a page, within quotes of a shell.
pub fn asked_by(uri: &Uri, headers: &HeaderMap, tls: bool) -> String {
    let host = uri.authority().map(Authority::as_str);
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    let Some(host) = host.filter(|host| is_one(host)) else {
        return USUAL.to_owned();
    };
    // Whatever stands before the node may have taken the TLS off.
    let before = headers.get("x-forwarded-proto");
    let scheme = if tls || before.is_some_and(|scheme| scheme == "https") {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{host}")
}

fn is_one(host: &str) -> bool {
    let sound =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    host.len() <= LONGEST && host.chars().all(sound) && host.parse::<Authority>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, lines: &[(&'static str, &str)], tls: bool) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        asked_by(&uri.parse().unwrap(), &headers, tls)
    }

    #[test]
    fn it_is_the_address_that_was_asked() {
        let host = |host| [("host", host)];
        assert_eq!(
            asked("/", &host("a-1.example"), false),
            "http://a-1.example"
        );
        assert_eq!(asked("/", &host("[::1]:8443"), true), "https://[::1]:8443");
        assert_eq!(asked("https://b:1/docs", &host("a"), true), "https://b:1");
        let behind = [("host", "a"), ("x-forwarded-proto", "https")];
        assert_eq!(asked("/", &behind, false), "https://a");
        let odd = [("host", "a"), ("x-forwarded-proto", "javascript")];
        assert_eq!(asked("/", &odd, false), "http://a");
    }

    #[test]
    fn what_is_none_is_not_repeated() {
        let long = "a".repeat(LONGEST + 1);
        for host in [
            "", "a'b", "a b", "<b>", "a/b", "a$(id)", "user@a", "a:b:c\"", "a;b", "%61", &long,
        ] {
            assert_eq!(asked("/", &[("host", host)], false), USUAL, "{host}");
        }
        assert_eq!(asked("/", &[], true), USUAL);
    }
}
