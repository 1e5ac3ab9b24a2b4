//! Who a request comes from, and whether it may: decided from its head, before its handler sees it.
//!
//! What a role may do is one table, [`need`], and what does not stand in it takes an admin: a new call is closed until it is
//! opened on purpose. A job that a path names is looked at here as well, so that no handler can forget to: what belongs to
//! somebody else is answered by the same code, after the same look into the cluster, as what is not there.
//!
//! Without tokens everybody may do everything; but a web page that somebody opens in a browser is not everybody. Browsers
//! say which page sends a request (`Origin`), and one from elsewhere is refused unless it is listed.

use std::net::IpAddr;
use std::time::Instant;

use axum::RequestExt as _;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::problem::{Kind, Problem};
use super::{App, gate, job_id};
use crate::access::Caller;
use crate::access::config::{Access, Origins};
use crate::access::rate::{Policy, Standing, seconds};
use crate::access::tokens::{Role, Table};

/// How requests of a token are counted, in `RateLimit-Policy` and `RateLimit`.
const POLICY: &str = "requests";
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Nothing: whoever asks is answered.
    Nothing,
    /// A token of this role, or of one that may more.
    Role(Role),
}

/// What a call needs, by its method and the route that it has taken.
fn need(method: &Method, route: Option<&str>, open_metrics: bool) -> Need {
    let looks = matches!(*method, Method::GET | Method::HEAD);
    let role = match route {
        // What a refusal refers to has to be there for whoever is refused.
        Some("/errors" | "/errors/{type}") if looks => return Need::Nothing,
        Some("/" | "/healthz" | "/readyz" | "/openapi.json" | "/docs") => return Need::Nothing,
        Some("/metrics") if open_metrics => return Need::Nothing,
        Some("/metrics" | "/v1/languages" | "/v1/cluster" | "/v1/queue") if looks => Role::Read,
        Some("/lang/{language}") => Role::Submit,
        Some("/v1/jobs") if looks => Role::Read,
        Some("/v1/jobs") => Role::Submit,
        // What these name is looked at job by job, by whoever handles them.
        Some("/v1/jobs/wait") => Role::Read,
        Some("/v1/jobs/batch" | "/v1/jobs/cancel") => Role::Submit,
        Some("/v1/languages/{name}") if looks => Role::Read,
        // A look with which a program can be fed.
        Some("/v1/jobs/{id}/attach") => Role::Submit,
        // All of these are about one job, which was looked at before.
        Some(route) if about_a_job(route) && looks => Role::Read,
        Some(route) if about_a_job(route) => Role::Submit,
        // Nothing is there, and that is all there is to say.
        None => Role::Read,
        Some(_) => Role::Admin,
    };
    Need::Role(role)
}

/// The role that a call needs at least, where there are tokens; `None` if it needs none.
pub fn role(method: &Method, route: &str) -> Option<Role> {
    match need(method, Some(route), false) {
        Need::Nothing => None,
        Need::Role(role) => Some(role),
    }
}

fn about_a_job(route: &str) -> bool {
    route
        .strip_prefix("/v1/jobs/{id}")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Lets a request through to its handler, which then finds a [`Caller`] among its extensions, or says why not.
pub async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let access = &app.config.access;
    let need = need(request.method(), route, access.open_metrics);
    let (caller, rate) = match identify(access, need, &request) {
        Ok(identified) => identified,
        Err(refusal) => return refusal.answer(request).await,
    };
    if route.is_some_and(about_a_job)
        && caller.only().is_some()
        && let Err(problem) = own(&app, &caller, &mut request).await
    {
        return Refusal::new(problem).rate(rate).answer(request).await;
    }
    request.extensions_mut().insert(caller);
    with_standing(next.run(request).await, rate)
}

/// That the job which a path names is there, as far as this caller is concerned. It is read as its handler will read it;
/// what cannot be read gets no further.
async fn own(app: &App, caller: &Caller, request: &mut Request) -> Result<(), Problem> {
    let params = request.extract_parts::<RawPathParams>().await;
    let params = params.map_err(|error| {
        Problem::new(
            Kind::MalformedPath,
            format!("a part of the path cannot be read: {}", error.body_text()),
        )
        .with("field", "path")
    })?;
    let named = params.iter().find(|(name, _)| *name == "id");
    let id = job_id(named.map_or("", |(_, text)| text))?;
    let query = request.uri().query().unwrap_or_default();
    let stale = query.split('&').any(|part| part == "consistency=stale");
    let seen = app.jobs.seen(id, stale, |job| caller.sees(job));
    Ok(seen.await?)
}

type Rate = Option<(Policy, Standing)>;

/// Who makes a request, and how it stands with the requests that its token may make.
fn identify(access: &Access, need: Need, request: &Request) -> Result<(Caller, Rate), Refusal> {
    let headers = request.headers();
    let Some(tokens) = &access.tokens else {
        if need != Need::Nothing {
            if access.local {
                known_host(&access.origins, request)?;
            }
            known_page(&access.origins, request)?;
        }
        return Ok((Caller::Anybody, None));
    };
    let Need::Role(least) = need else {
        return Ok((Caller::Anybody, None));
    };
    let caller = bearer(&tokens.now(), headers)?;
    let Caller::Bearer(token) = &caller else {
        return Ok((caller, None));
    };
    let rate = match &token.requests {
        None => None,
        Some(bucket) => {
            let policy = bucket.policy();
            let standing = bucket
                .take(Instant::now())
                .map_err(|wait| Refusal::too_fast(policy, seconds(wait)))?;
            Some((policy, standing))
        }
    };
    if token.role < least {
        let problem = Problem::new(
            Kind::NotAllowed,
            format!(
                "this takes a token with the role {}; this one has {}",
                least.name(),
                token.role.name()
            ),
        )
        .with("role", token.role.name())
        .with("needed", least.name());
        let refusal = Refusal::new(problem).challenge("Bearer error=\"insufficient_scope\"");
        return Err(refusal.rate(rate));
    }
    Ok((caller, rate))
}

/// Whose token a request carries.
fn bearer(tokens: &Table, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let missing = |detail: &str| {
        let problem = Problem::new(Kind::NoToken, detail);
        Refusal::new(problem).challenge("Bearer")
    };
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(missing(
            "send one header Authorization: Bearer TOKEN; whoever runs the cluster gives tokens out",
        ));
    };
    let (scheme, token) = value.as_bytes().split_at(value.len().min(7));
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(missing(
            "the Authorization header should be Bearer TOKEN; other schemes are not known here",
        ));
    }
    match tokens.find(token.trim_ascii()) {
        Some(token) => Ok(Caller::Bearer(token.clone())),
        None => {
            let problem = Problem::new(
                Kind::UnknownToken,
                "no such token holds here; it may have been taken back, or be cut off",
            );
            Err(Refusal::new(problem).challenge("Bearer error=\"invalid_token\""))
        }
    }
}

/// The host and the port that the client has asked for.
fn asked_for(request: &Request) -> Option<&[u8]> {
    let authority = request.uri().authority().map(|a| a.as_str().as_bytes());
    let host = request.headers().get(header::HOST);
    authority.or(host.map(HeaderValue::as_bytes))
}

/// That a request to a node that only this machine reaches was meant for this machine: a page of somebody else's, whose name
/// leads here by now, comes by that name ("DNS rebinding").
fn known_host(origins: &Origins, request: &Request) -> Result<(), Refusal> {
    let Some(asked) = asked_for(request) else {
        return Ok(());
    };
    let authority = Authority::try_from(asked).ok();
    let host = authority.as_ref().map_or("", Authority::host);
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let local = literal.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost");
    if local || origins.name(host) {
        return Ok(());
    }
    Err(Refusal::new(Problem::new(Kind::ForeignOrigin,
        "this node has no tokens and listens for this machine alone, so it should be asked for by an address or as localhost; --cors-origin lists other names that it has",
    )
    .with("field", header::HOST.as_str())
    .with("value", String::from_utf8_lossy(asked))))
}

/// That a request does not come from a web page of somebody else's.
fn known_page(origins: &Origins, request: &Request) -> Result<(), Refusal> {
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return Ok(());
    };
    let here = asked_for(request);
    let own = origin
        .as_bytes()
        .split(|byte| *byte == b'/')
        .nth(2)
        .zip(here)
        .is_some_and(|(theirs, ours)| theirs.eq_ignore_ascii_case(ours));
    if own || origins.admits(origin) {
        return Ok(());
    }
    Err(Refusal::new(Problem::new(Kind::ForeignOrigin,
        "the request comes from a web page of another origin, and this node has no tokens by which it could know who sent it; --cors-origin lists the origins that may",
    )
    .with("field", header::ORIGIN.as_str())
    .with("value", String::from_utf8_lossy(origin.as_bytes()))))
}

/// Why a request is not let through.
struct Refusal {
    /// Boxed, because it is far larger than what is returned in its place.
    problem: Box<Problem>,
    challenge: Option<&'static str>,
    rate: Rate,
}

impl Refusal {
    fn new(problem: Problem) -> Self {
        Self {
            problem: Box::new(problem),
            challenge: None,
            rate: None,
        }
    }

    fn too_fast(policy: Policy, wait_s: u64) -> Self {
        let problem = Problem::new(Kind::RateLimited,
            format!(
                "this token may make {} requests a second at each node, and {} at once after a pause; the next one in {wait_s} s",
                policy.per_second, policy.burst
            ),
        )
        .with("field", "requests")
        .with("limit", policy.per_second)
        .retry_after(wait_s);
        let standing = Standing {
            left: 0,
            full_in_s: policy.window_s(),
        };
        Self::new(problem).rate(Some((policy, standing)))
    }

    /// What would do instead, for `WWW-Authenticate`.
    const fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    const fn rate(mut self, rate: Rate) -> Self {
        self.rate = rate;
        self
    }

    async fn answer(self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let problem = gate::turn_away(*self.problem, &parts.headers, body).await;
        let mut response = problem.into_response();
        if let Some(challenge) = self.challenge {
            let challenge = HeaderValue::from_static(challenge);
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        with_standing(response, self.rate)
    }
}

/// Says how it stands with the requests that a token may make.
fn with_standing(mut response: Response, rate: Rate) -> Response {
    let Some((policy, standing)) = rate else {
        return response;
    };
    let fields = [
        (
            RATE_LIMIT_POLICY,
            format!("\"{POLICY}\";q={};w={}", policy.burst, policy.window_s()),
        ),
        (
            RATE_LIMIT,
            format!("\"{POLICY}\";r={};t={}", standing.left, standing.full_in_s),
        ),
    ];
    for (name, text) in fields {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Tells browsers which web pages may read answers. Tokens are no cookies: a browser adds none by itself, so a page can use
/// only one that it was given.
pub fn pages(origins: &Origins) -> Option<CorsLayer> {
    let allowed = match origins {
        Origins::None => return None,
        Origins::Any => AllowOrigin::any(),
        Origins::Listed(list) => AllowOrigin::list(list.iter().cloned()),
    };
    let named = HeaderName::from_static;
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            named("idempotency-key"),
            named("last-event-id"),
        ])
        .expose_headers([
            header::ETAG,
            header::LINK,
            header::LOCATION,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
            RATE_LIMIT_POLICY,
            RATE_LIMIT,
            named("quorun-job-id"),
            named("quorun-verdict"),
            named("quorun-exit-code"),
            named("quorun-cpu-ms"),
            named("quorun-wall-ms"),
            named("quorun-memory-kb"),
            named("quorun-node"),
        ])
        .max_age(std::time::Duration::from_secs(600));
    Some(layer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::tokens::draw;

    #[test]
    fn what_is_not_in_the_table_takes_an_admin() {
        let of = |method: Method, route| need(&method, Some(route), false);
        let (read, submit, admin) = (
            Need::Role(Role::Read),
            Need::Role(Role::Submit),
            Need::Role(Role::Admin),
        );
        for (method, route, expected) in [
            (Method::GET, "/healthz", Need::Nothing),
            (Method::GET, "/errors", Need::Nothing),
            (Method::GET, "/errors/{type}", Need::Nothing),
            (Method::POST, "/errors", admin),
            (Method::GET, "/metrics", read),
            (Method::GET, "/v1/cluster", read),
            (Method::GET, "/v1/languages", read),
            (Method::GET, "/v1/languages/{name}", read),
            (Method::PUT, "/v1/languages/{name}", admin),
            (Method::PATCH, "/v1/languages/{name}", admin),
            (Method::DELETE, "/v1/languages/{name}", admin),
            (Method::POST, "/v1/cluster", admin),
            (Method::POST, "/v1/cluster/nodes", admin),
            (Method::GET, "/v1/cluster/settings", admin),
            (Method::POST, "/lang/{language}", submit),
            (Method::GET, "/v1/jobs", read),
            (Method::POST, "/v1/jobs", submit),
            (Method::DELETE, "/v1/jobs", submit),
            (Method::POST, "/v1/jobs/batch", submit),
            (Method::POST, "/v1/jobs/cancel", submit),
            (Method::POST, "/v1/jobs/wait", read),
            (Method::GET, "/v1/queue", read),
            (Method::POST, "/v1/queue", admin),
            (Method::GET, "/v1/jobs/{id}", read),
            (Method::DELETE, "/v1/jobs/{id}", submit),
            (Method::GET, "/v1/jobs/{id}/events", read),
            (Method::GET, "/v1/jobs/{id}/attach", submit),
            (Method::GET, "/v1/jobsomething", admin),
            (Method::GET, "/v1/jobs/{id}more", admin),
            (Method::GET, "/v1/secrets", admin),
        ] {
            assert_eq!(of(method.clone(), route), expected, "{method} {route}");
        }
        assert_eq!(need(&Method::GET, Some("/metrics"), true), Need::Nothing);
        assert_eq!(need(&Method::GET, None, false), read);
    }

    fn table(sha256: &str) -> Table {
        let text = format!("[[token]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"{sha256}\"");
        Table::parse(&text, &Table::default()).unwrap()
    }

    #[test]
    fn a_token_comes_in_one_header_of_one_form() {
        let drawn = draw().unwrap();
        let tokens = table(&drawn.sha256);
        let with = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&tokens, &headers)
        };
        let token = &drawn.token;
        for right in [
            format!("Bearer {token}"),
            format!("bearer {token}"),
            format!("Bearer   {token}"),
        ] {
            assert!(with(&[right]).is_ok());
        }
        for (wrong, challenge) in [
            (vec![], "Bearer"),
            (vec![token.clone()], "Bearer"),
            (vec![String::new()], "Bearer"),
            (vec![format!("Basic {token}")], "Bearer"),
            (vec![format!("Bearer{token}")], "Bearer"),
            (vec![format!("Bearer {token}"); 2], "Bearer"),
            (vec!["Bearer ".to_owned()], "Bearer error=\"invalid_token\""),
            (
                vec![format!("Bearer {token} {token}")],
                "Bearer error=\"invalid_token\"",
            ),
            (
                vec![format!("Bearer {token}x")],
                "Bearer error=\"invalid_token\"",
            ),
        ] {
            let refusal = with(&wrong).err().unwrap();
            assert_eq!(refusal.challenge, Some(challenge), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_page_of_this_node_may_use_it_when_there_are_no_tokens() {
        let from = |origin: &str, host: &str, listed: Origins| {
            let request = Request::builder()
                .header(header::HOST, host)
                .header(header::ORIGIN, origin)
                .body(axum::body::Body::empty())
                .unwrap();
            known_page(&listed, &request).is_ok()
        };
        assert!(from(
            "http://localhost:8080",
            "localhost:8080",
            Origins::None
        ));
        assert!(from(
            "http://LOCALHOST:8080",
            "localhost:8080",
            Origins::None
        ));
        for origin in [
            "http://evil.example",
            "http://localhost:8081",
            "http://localhost",
            "null",
            "",
            "//localhost:8080",
        ] {
            let passes = from(origin, "localhost:8080", Origins::None);
            assert_eq!(passes, origin == "//localhost:8080", "{origin}");
        }
        let listed = Origins::Listed(vec![HeaderValue::from_static("http://judge.example")]);
        assert!(from("http://judge.example", "localhost:8080", listed));
    }

    #[test]
    fn a_node_of_this_machine_alone_is_asked_for_by_its_address() {
        let by = |host: &str, listed: &Origins| {
            let request = Request::builder()
                .header(header::HOST, host)
                .body(axum::body::Body::empty())
                .unwrap();
            known_host(listed, &request).is_ok()
        };
        for host in [
            "localhost",
            "LocalHost:8080",
            "a.localhost:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(by(host, &Origins::None), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
        ] {
            assert!(!by(host, &Origins::None), "{host}");
        }
        let listed = Origins::Listed(vec![HeaderValue::from_static("http://judge.example:81")]);
        assert!(by("judge.example:8080", &listed) && !by("other.example", &listed));
        let nobody = Request::builder().body(axum::body::Body::empty()).unwrap();
        assert!(known_host(&Origins::None, &nobody).is_ok());
    }

    proptest! {
        #[test]
        fn no_header_panics(value in prop::collection::vec(32..=255_u8, 0..300)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(header::AUTHORIZATION, value);
            }
            prop_assert!(bearer(&table(&"0".repeat(64)), &headers).is_err());
        }

        #[test]
        fn no_path_panics(path in ".*") {
            let _ = about_a_job(&path);
        }
    }
}
