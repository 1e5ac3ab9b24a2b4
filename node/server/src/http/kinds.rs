//! Every type of problem that a client can be told of. [`Problem`](super::problem::Problem) is made from one of these, so
//! that no type, status or title goes out that does not stand here. `docs/errors.md` is written from this list, and so is
//! what a node shows at `/errors`.

use std::fmt::Write as _;

use http::StatusCode;

/// What all types begin with. It is a name, not an address, so that it stays what it is wherever a cluster runs.
pub const PREFIX: &str = "urn:quorun:error:";
/// Where a node says more about a type.
pub const PAGES: &str = "/errors";

/// A type of problem, described.
#[derive(Debug)]
pub struct Described {
    /// The last part of its `type`.
    pub slug: &'static str,
    /// The status of its answers.
    pub status: StatusCode,
    /// Its `title`.
    pub title: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// Whether its answers have `Retry-After`.
    pub retry: bool,
    /// What can stand beside `type`, `title`, `status` and `detail`, and what that says.
    pub members: &'static [(&'static str, &'static str)],
    /// The `detail` and the members of one that was seen.
    pub example: &'static str,
}

macro_rules! kinds {
    ($(
        $kind:ident $slug:literal $status:ident $title:literal
        means $means:literal
        remedy $remedy:literal
        $(retry $retry:literal)?
        $(member $member:literal $says:literal)*
        example $example:literal
    )*) => {
        /// A type of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $(#[doc = $title] $kind,)*
        }

        impl Kind {
            /// All of them, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// What there is to say about it.
            #[must_use]
            pub const fn described(self) -> &'static Described {
                match self {
                    $(Self::$kind => const {
                        &Described {
                            slug: $slug,
                            status: StatusCode::$status,
                            title: $title,
                            means: $means,
                            remedy: $remedy,
                            retry: false $(|| $retry)?,
                            members: &[$(($member, $says),)*],
                            example: $example,
                        }
                    },)*
                }
            }
        }
    };
}

kinds! {
    InvalidRequest "invalid-request" UNPROCESSABLE_ENTITY "The request is not valid"
        means "Something in the body, the query or a header has a wrong type, an unknown name, or a value that is not allowed."
        remedy "Change what `field` names, as the detail says. The same request will not do later either."
        member "field" "what is wrong: the path of a field in the body (`files[0].name`), the name of a parameter or a header, `query` or `body`"
        member "value" "what it has, cut off where it is long; its length or its count where that is what is wrong. Left out where it is of another kind, a secret, or not there at all"
        member "limit" "the bound that it misses"
        example r#"{"detail": "limits.cpu_ms is 60000; at most 20000 is allowed", "field": "limits.cpu_ms", "limit": 20000, "value": 60000}"#

    InvalidBatch "invalid-batch" UNPROCESSABLE_ENTITY "Some jobs of the batch are not valid"
        means "Jobs of an atomic batch are not valid, so none of its jobs was accepted."
        remedy "Correct the jobs that `errors` names, or send the batch without `atomic`."
        member "field" "`jobs`"
        member "value" "how many are not valid"
        member "errors" "the problem of each of them, whose `field` begins with `jobs[N]`; the first 100"
        example r#"{"detail": "1 of 2 jobs are not valid, so none was accepted; errors says what is wrong with each (the first 100)", "errors": [{"detail": "jobs[1]: source (or files) is missing", "field": "jobs[1].source", "status": 422, "title": "The request is not valid", "type": "urn:quorun:error:invalid-request"}], "field": "jobs", "value": 1}"#

    NotJson "not-json" BAD_REQUEST "The body is not JSON"
        means "The body cannot be parsed as JSON in UTF-8, or is nested more than 128 deep."
        remedy "Look at the line and the column that the detail names. From a shell, check the quotes."
        member "field" "`body`, or the job of a batch"
        example r#"{"detail": "the body cannot be parsed as JSON in UTF-8: expected value at line 1 column 1", "field": "body"}"#

    NotUtf8 "not-utf8" BAD_REQUEST "The source is not UTF-8"
        means "The body of `/lang` is not UTF-8."
        remedy "Send bytes as `files[].content_base64` to `/v1/jobs`."
        member "field" "`source`"
        member "value" "the place of the first byte that is wrong, from 0"
        example r#"{"detail": "the source is not UTF-8: byte 7 is wrong; send bytes as files[].content_base64 to /v1/jobs", "field": "source", "value": 7}"#

    EmptySource "empty-source" BAD_REQUEST "There is no program"
        means "The source, or all of the files together, are empty."
        remedy "Send the program's text: the body of `/lang`, `source` or `files` of `/v1/jobs`. With curl, `--data-binary @FILE` sends a file as it is."
        member "field" "`source`"
        example r#"{"detail": "the source is empty; send the program's text as the body", "field": "source"}"#

    TooLarge "too-large" PAYLOAD_TOO_LARGE "The request is too large"
        means "The body, the source, a stdin, the tests together or an atomic batch are over the limit."
        remedy "Send less, or ask who runs the cluster for more: [the limits](operations.md#limits) are settings."
        member "field" "`body`, `source`, `stdin`, `tests`, `tests[N].stdin` or `batch`"
        member "value" "how large it is, bytes; left out where that was not announced"
        member "limit" "how large it may be, bytes"
        example r#"{"detail": "source is larger than 65536 bytes, which is the most that this cluster accepts (--max-source-kb)", "field": "source", "limit": 65536, "value": 70000}"#

    EncodedBody "encoded-body" UNSUPPORTED_MEDIA_TYPE "The body is compressed"
        means "The body has a `Content-Encoding`."
        remedy "Send it as it is."
        member "field" "`Content-Encoding`"
        member "value" "the encoding"
        example r#"{"detail": "the body has a Content-Encoding; send it as it is", "field": "Content-Encoding", "value": "gzip"}"#

    SlowBody "slow-body" REQUEST_TIMEOUT "The body did not arrive in time"
        means "The body took longer than 30 s."
        remedy "Send it again, through a faster way, or in parts: fewer jobs a batch."
        member "field" "`body`"
        member "limit" "how long it may take, seconds"
        example r#"{"detail": "the body took longer than 30s", "field": "body", "limit": 30}"#

    IncompleteBody "incomplete-body" BAD_REQUEST "The body did not arrive whole"
        means "The connection broke while the body was sent, or its chunks are no chunks. Nothing was done."
        remedy "Send it again."
        member "field" "`body`"
        example r#"{"detail": "the body broke off: Invalid chunk size line", "field": "body"}"#

    MalformedRequest "malformed-request" BAD_REQUEST "The request cannot be read"
        means "What was sent is not HTTP, or could be read in two ways, such as two lengths. Nothing behind it on the connection is read either."
        remedy "Look at what the client sends: the request line, the names of headers, `Content-Length` and `Transfer-Encoding`."
        example r#"{"detail": "what was sent is not a request of HTTP/1.1; the connection is closed"}"#

    HeadTooLarge "head-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE "The head of the request is too large"
        means "The request line and the headers together are larger than 64 KiB, or there are more than 100 headers."
        remedy "Send fewer headers; programs and their input go into the body."
        example r#"{"detail": "the head of the request is larger than 64 KiB, or has more than 100 headers"}"#

    AddressTooLong "address-too-long" URI_TOO_LONG "The path and the query are too long"
        means "The path and the query together are longer than 65534 bytes."
        remedy "Send what is long in the body: `stdin` in a job of `/v1/jobs` in the place of the query of `/lang`."
        example r#"{"detail": "the path and the query together are longer than 65534 bytes"}"#

    UnknownPath "unknown-path" NOT_FOUND "There is nothing here"
        means "No call has this path."
        remedy "Look at [the calls](api.md)."
        example r#"{"detail": "/v2/jobs is not a path of this API; programs are posted to /lang/{language} or /v1/jobs"}"#

    WrongMethod "wrong-method" METHOD_NOT_ALLOWED "The path does not take this method"
        means "There is such a path, but not with this method."
        remedy "`Allow` says what it takes."
        example r#"{"detail": "/v1/queue does not take POST; the Allow header says what it takes"}"#

    MalformedPath "malformed-path" BAD_REQUEST "The path is malformed"
        means "A part of the path is not UTF-8 once it is decoded."
        remedy "Encode it as UTF-8, and that with percent signs."
        member "field" "`path`"
        example r#"{"detail": "a part of the path cannot be read: Invalid UTF-8 in `id`", "field": "path"}"#

    UnknownLanguage "unknown-language" NOT_FOUND "There is no such language"
        means "The cluster has no language of this name, nor one with such an alias."
        remedy "Take one of `languages`, or have an admin [set it](api.md#languages)."
        member "field" "where it was named: `language`, or `checker.language`"
        member "value" "the name"
        member "languages" "those that there are"
        example r#"{"detail": "\"cobol\" is not a language of this cluster; it has bash, c, cpp, python", "field": "language", "languages": ["bash", "c", "cpp", "python"], "value": "cobol"}"#

    LanguageDisabled "language-disabled" UNPROCESSABLE_ENTITY "The language is disabled"
        means "An admin has disabled the language. Jobs that were accepted before still run."
        remedy "Take another one, or ask an admin."
        member "field" "`language`"
        member "language" "its name"
        example r#"{"detail": "the language lua is disabled: it takes no jobs until an admin enables it", "field": "language", "language": "lua"}"#

    LanguageNotReady "language-not-ready" SERVICE_UNAVAILABLE "No node can run the language yet"
        means "No node that lives can run the language as it is defined now, and not all have said that they cannot; most often its image is still being pulled."
        remedy "Try again. `GET /v1/languages/{name}` says how it stands on each node."
        retry true
        member "field" "`language`"
        member "language" "its name"
        example r#"{"detail": "no node that lives can run the language lua as it is defined now; /v1/languages/lua says how it stands on each node", "field": "language", "language": "lua"}"#

    LanguageUnavailable "language-unavailable" UNPROCESSABLE_ENTITY "No node has the language"
        means "Every node that lives has looked for what the language needs, and has said that it is not there; most often its image is missing, and is not pulled, or cannot be."
        remedy "Do not try again at once: take another language, or ask who runs the cluster. The nodes look again by themselves; `GET /v1/languages/{name}` says how it stands on each."
        member "field" "`language`"
        member "language" "its name"
        member "nodes" "each node with its `reason`"
        example r#"{"detail": "no node has the language lua: node 1: there is no image lua:5.4 on the engine", "field": "language", "language": "lua", "nodes": [{"node": 1, "reason": "there is no image lua:5.4 on the engine"}]}"#

    LanguageChanged "language-changed" PRECONDITION_FAILED "The language is not as the request expects it"
        means "The language does not have the version that `If-Match` or `If-None-Match` expects. Nothing was changed."
        remedy "Look at it, decide again, and send its new `ETag`."
        member "version" "what it has; 0 if it is not set, or not there"
        example r#"{"detail": "the language lua has version 7; look at it and decide again", "version": 7}"#

    LanguageOfFile "language-of-file" CONFLICT "The language is of the nodes' files"
        means "Only what was set can be removed, and this language is in the files of the nodes."
        remedy "Disable it: `PATCH` with `{\"disabled\": true}`."
        member "language" "its name"
        example r#"{"detail": "python is not set in the cluster but in the files of the nodes, which have it anyway; disable it with PATCH {\"disabled\": true}", "language": "python"}"#

    NameTaken "name-taken" CONFLICT "A name belongs to another language"
        means "The name of a language, or one of its aliases, is a name or an alias of another one."
        remedy "Take another name, or define the other language without it first."
        member "name" "the name"
        member "language" "the language that has it"
        example r#"{"detail": "\"py\" is a name or an alias of the language python; take another one, or define python without it first", "language": "python", "name": "py"}"#

    TooManyLanguages "too-many-languages" CONFLICT "Too many languages are set"
        means "As many languages are set as may be."
        remedy "Remove one first."
        member "limit" "how many may be set"
        example r#"{"detail": "256 languages are set, which is the most; remove one first", "limit": 256}"#

    OlderNodes "older-nodes" CONFLICT "Some nodes are too old for this"
        means "Some nodes run a program that does not know this (languages at run time, or how a finished job is removed), and would stop at it."
        remedy "Upgrade all nodes first."
        member "nodes" "their ids, where they are known"
        example r#"{"detail": "some nodes run an older program that does not know languages at run time; upgrade all nodes first", "nodes": [2]}"#

    UnknownJob "unknown-job" NOT_FOUND "There is no such job"
        means "There is no job of this id, it has expired, or it belongs to somebody else."
        remedy "Look at the id; [lists](api.md#lists) show which there are. `retention_s` says how long a finished job is kept."
        member "job" "the id"
        example r#"{"detail": "there is no job 01900000-0000-7000-8000-000000000000; it may have expired", "job": "01900000-0000-7000-8000-000000000000"}"#

    AlreadyFinished "already-finished" CONFLICT "The job has already finished"
        means "A job that has its result cannot be cancelled: a result never changes."
        remedy "Nothing needs to be done."
        member "job" "its id"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 has already finished, and a result never changes", "job": "01900000-0000-7000-8000-000000000000"}"#

    Unfinished "unfinished" CONFLICT "The job has no result yet"
        means "Only a finished job can be removed; this one waits or runs."
        remedy "Cancel it first, or wait for its end."
        member "job" "its id"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 has not finished; cancel it first, or wait for its end", "job": "01900000-0000-7000-8000-000000000000"}"#

    Undelivered "undelivered" CONFLICT "The job's callback is still to be delivered"
        means "A job cannot be removed as long as its callback is still to be delivered, which takes the job."
        remedy "Wait until `callback.state` is `delivered` or `failed`."
        member "job" "its id"
        example r#"{"detail": "the callback of job 01900000-0000-7000-8000-000000000000 is still to be delivered; it can be removed once it is delivered, or has failed for good", "job": "01900000-0000-7000-8000-000000000000"}"#

    NotDeliverable "not-deliverable" CONFLICT "The callback cannot be sent again"
        means "The job has no callback, has not finished, or its callback was tried as often as it may be."
        remedy "`callback` of the job says how it stands. What was tried that often is to be fetched by whoever needs it."
        member "job" "its id"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 has no callback", "job": "01900000-0000-7000-8000-000000000000"}"#

    IdempotencyConflict "idempotency-conflict" CONFLICT "The Idempotency-Key was used for another request"
        means "A job has this key, and was submitted with another request."
        remedy "Use a new key for a new request. If it should be the same request, compare the two."
        member "field" "`Idempotency-Key`"
        member "job" "the job that has the key"
        example r#"{"detail": "the Idempotency-Key was used for job 01900000-0000-7000-8000-000000000000 with a different request; use a new key for a new request", "field": "Idempotency-Key", "job": "01900000-0000-7000-8000-000000000000"}"#

    NotInteractive "not-interactive" CONFLICT "Nobody can talk to the job's program"
        means "Attaching to a job that was submitted without `interactive`."
        remedy "Submit it with `\"interactive\": true`, or follow its events."
        member "job" "its id"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 was submitted without \"interactive\": true; follow it at /v1/jobs/01900000-0000-7000-8000-000000000000/events", "job": "01900000-0000-7000-8000-000000000000"}"#

    NotAWebSocket "not-a-websocket" BAD_REQUEST "This path takes WebSockets"
        means "`/attach` was asked for without opening a WebSocket, or without the subprotocol `quorun.attach.v1` among those that were offered."
        remedy "Use a client that speaks WebSocket, such as `quorun run --interactive`; see [conversations](live.md#conversations-get-v1jobsidattach)."
        example r#"{"detail": "the request does not open a WebSocket with the subprotocol quorun.attach.v1: Connection header did not include 'upgrade'"}"#

    NoToken "no-token" UNAUTHORIZED "A token is needed"
        means "The cluster has tokens, and the request carries none, more than one, or something else in `Authorization`. `WWW-Authenticate` says so as well."
        remedy "Send `Authorization: Bearer TOKEN`, once. Whoever runs the cluster gives tokens out."
        example r#"{"detail": "send one header Authorization: Bearer TOKEN; whoever runs the cluster gives tokens out"}"#

    UnknownToken "unknown-token" UNAUTHORIZED "The token is not known"
        means "The token does not hold here, or no longer. `WWW-Authenticate` says so as well."
        remedy "Check that it is whole; ask for a new one."
        example r#"{"detail": "no such token holds here; it may have been taken back, or be cut off"}"#

    NotAllowed "not-allowed" FORBIDDEN "The token may not do this"
        means "The token has a role that may not make this call. `WWW-Authenticate` says so as well."
        remedy "Use a token with the role that is `needed`; [which may what](api.md#tokens)."
        member "role" "the role that the token has"
        member "needed" "the role that would do"
        example r#"{"detail": "this takes a token with the role admin; this one has submit", "needed": "admin", "role": "submit"}"#

    ForeignOrigin "foreign-origin" FORBIDDEN "Web pages from elsewhere may not use this node"
        means "A web page of another origin asks a node that has no tokens, and so cannot know who is behind it."
        remedy "Give the cluster [tokens](operations.md#who-may-do-what), or list the origin with `--cors-origin`."
        member "field" "`Origin`"
        member "value" "the origin"
        example r#"{"detail": "the request comes from a web page of another origin, and this node has no tokens by which it could know who sent it; --cors-origin lists the origins that may", "field": "Origin", "value": "https://pages.example"}"#

    RateLimited "rate-limited" TOO_MANY_REQUESTS "The token makes too many requests"
        means "The token makes more requests than it may at this node. `RateLimit-Policy` and `RateLimit` say how it stands."
        remedy "Wait as long as `Retry-After` says. Many jobs fit into one batch, and one wait."
        retry true
        member "field" "`requests`"
        member "limit" "how many it may make in a second"
        example r#"{"detail": "this token may make 5 requests a second at each node, and 10 at once after a pause; the next one in 1 s", "field": "requests", "limit": 5}"#

    OwnerBusy "owner-busy" TOO_MANY_REQUESTS "The owner of this token has too much under way"
        means "The token's owner has as much in the cluster as it may."
        remedy "Let some of its jobs end, and come again when `Retry-After` says."
        retry true
        member "field" "`jobs` (without a result), `queue.jobs` or `queue.bytes` (of those that wait)"
        member "value" "how much there is"
        member "limit" "how much there may be"
        example r#"{"detail": "team-7 has 4 unfinished jobs of the 4 that its token allows in the whole cluster", "field": "jobs", "limit": 4, "value": 4}"#

    QueueFull "queue-full" TOO_MANY_REQUESTS "The queue is full"
        means "As many jobs wait in the whole cluster as may, or hold as much as they may."
        remedy "Come again when `Retry-After` says, at any node. A retry of what was accepted is not refused for this."
        retry true
        member "field" "`queue.jobs`, or `queue.bytes`"
        member "value" "how many wait, or what they hold"
        member "limit" "how many may wait, or what they may hold"
        example r#"{"detail": "100000 jobs are waiting, which is the most that this cluster accepts", "field": "queue.jobs", "limit": 100000, "value": 100000}"#

    ClientBusy "client-busy" TOO_MANY_REQUESTS "This client has too much under way"
        means "This address has as much under way at this node as one may."
        remedy "Let some of it end first. Clients behind one address share what it may have; [the bounds](operations.md#limits) are settings."
        retry true
        member "field" "`connections`, `waiting` (requests that wait for a job, or follow one) or `body_bytes` (of requests and large answers that are under way)"
        member "value" "how much there would be"
        member "limit" "how much there may be"
        example r#"{"detail": "this address would have 513 requests that wait for a job at this node, and may have 512; let some of them end first", "field": "waiting", "limit": 512, "value": 513}"#

    NodeBusy "node-busy" SERVICE_UNAVAILABLE "This node has too much under way"
        means "All clients of this node together have as much under way as it takes."
        remedy "Try again, or another node, which may have room."
        retry true
        member "field" "`connections`, `waiting` or `body_bytes`"
        member "value" "how much there would be"
        member "limit" "how much there may be"
        example r#"{"detail": "this node would have 2049 requests that wait for a job, and may have 2048; try again, or another node", "field": "waiting", "limit": 2048, "value": 2049}"#

    DiskFull "disk-full" SERVICE_UNAVAILABLE "This node has too little room on its disk"
        means "This node takes no jobs, so that its disk has room for what it has confirmed."
        remedy "Try another node. Whoever runs it makes room, or lowers `--min-disk-mb`."
        retry true
        member "left_mib" "the room that is left, MiB"
        example r#"{"detail": "the disk of this node has 100 MiB left; other nodes may still take jobs", "left_mib": 100}"#

    NoQuorum "no-quorum" SERVICE_UNAVAILABLE "The cluster has no leader that this node can reach"
        means "No leader was reached, because fewer than half of the voters reach each other, a new one is being elected, or this node is cut off or about to end. Nothing was changed."
        remedy "Try again, at any node: an election takes a moment. If it stays so, look at `GET /readyz` of each node."
        retry true
        example r#"{"detail": "no leader was reached within 10s; nothing was changed; try again, at any node"}"#

    Unconfirmed "unconfirmed" SERVICE_UNAVAILABLE "The cluster did not confirm the request in time"
        means "Whether the request was taken is not known: it may have been, or still be."
        remedy "Send a submission again with the same `Idempotency-Key`, or look for `job`. Changes of the cluster or of a language can be sent again."
        retry true
        member "job" "the id that the job has if it was accepted; of a submission only"
        example r#"{"detail": "the cluster did not confirm within 10s; whether the request was taken is not known: look for job 01900000-0000-7000-8000-000000000000, or send the request again with the same Idempotency-Key", "job": "01900000-0000-7000-8000-000000000000"}"#

    NodeFailing "node-failing" SERVICE_UNAVAILABLE "This node cannot read its ledger"
        means "What this node keeps on its disk could not be read."
        remedy "Try another node. The node's log says what is wrong with it."
        retry true
        example r#"{"detail": "the ledger could not be read: input/output error; try another node"}"#

    NodeEnding "node-ending" SERVICE_UNAVAILABLE "This node is about to end"
        means "The node was told to end while this request waited. What was accepted, or set, stays and goes on."
        remedy "Ask another node: for `job`, if there is one."
        retry true
        member "job" "the job that was waited for"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 was accepted and goes on; ask another node for it at /v1/jobs/01900000-0000-7000-8000-000000000000", "job": "01900000-0000-7000-8000-000000000000"}"#

    NotFinished "not-finished" GATEWAY_TIMEOUT "The job has not finished yet"
        means "`/lang` waited for ten minutes. The job was accepted and goes on."
        remedy "Ask for `job` later."
        member "job" "its id"
        example r#"{"detail": "job 01900000-0000-7000-8000-000000000000 was accepted but has not finished in 600s; ask for it at /v1/jobs/01900000-0000-7000-8000-000000000000", "job": "01900000-0000-7000-8000-000000000000"}"#

    UnknownNode "unknown-node" NOT_FOUND "There is no such node"
        means "No node of the cluster has this id."
        remedy "`GET /v1/cluster` shows which there are. Ids of removed nodes are not used again."
        member "node" "the id"
        example r#"{"detail": "node 9 does not belong to this cluster; its nodes are 1, 2, 3", "node": 9}"#

    NodeAlive "node-alive" CONFLICT "A node of the cluster has this address"
        means "A new node has the address of a member that was not declared lost."
        remedy "Give it an address of its own, or remove the member first."
        member "node" "the member"
        example r#"{"detail": "node 2 has the address 10.0.0.2:7000 and was not declared lost; a new node needs an address of its own, or node 2 has to be removed first", "node": 2}"#

    NoMajorityLeft "no-majority-left" CONFLICT "The cluster would lose its majority"
        means "Without the node, no majority of the voters would be alive, and nothing could be decided any more."
        remedy "Bring nodes back, or add some, first."
        member "node" "the node"
        example r#"{"detail": "without node 1, 1 of 2 voters would be alive, which is no majority; bring nodes back or add some first", "node": 1}"#

    NotAVoter "not-a-voter" CONFLICT "Only a voter can lead"
        means "The leadership was to go to a node that is a learner."
        remedy "Name a voter: `role` in `GET /v1/cluster`."
        member "node" "the node"
        example r#"{"detail": "node 6 is a learner; only voters lead", "node": 6}"#

    LeaderNotMoved "leader-not-moved" CONFLICT "The leadership was not moved"
        means "The leadership stayed where it was: there is no other voter, or the one that was named has not taken over."
        remedy "The detail says why; try again, or name another node."
        example r#"{"detail": "there is no other voter"}"#

    Internal "internal" INTERNAL_SERVER_ERROR "Quorun has a bug"
        means "The request met with a mistake in Quorun. The node goes on."
        remedy "Please report it, with what the node's log says at that time."
        example r#"{"detail": "the request could not be handled; the node's log has the place"}"#
}

impl Kind {
    /// The kind whose `type` ends so.
    pub fn of_slug(slug: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.described().slug == slug)
    }

    /// Its `type`.
    pub fn uri(self) -> String {
        format!("{PREFIX}{}", self.described().slug)
    }

    /// Whether a problem of this kind can have a member of this name.
    pub fn has(self, member: &str) -> bool {
        let mut members = self.described().members.iter();
        members.any(|(name, _)| *name == member)
    }

    /// The body of an answer of this type, as one was seen.
    pub fn example(self) -> serde_json::Value {
        // Written in the list, and tested there: it can be read.
        let mut shown: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(self.described().example).unwrap_or_default();
        shown.insert("type".to_owned(), self.uri().into());
        shown.insert("title".to_owned(), self.described().title.into());
        shown.insert("status".to_owned(), self.described().status.as_u16().into());
        shown.into()
    }

    /// The section about it, in Markdown.
    pub fn section(self) -> String {
        let Described {
            slug,
            status,
            title,
            means,
            remedy,
            retry,
            members,
            ..
        } = self.described();
        let mut text = format!("## {slug}\n\n{}: **{title}**", status.as_u16());
        if *retry {
            text += ", with `Retry-After`";
        }
        let _ = write!(text, "\n\n{means}\n\n{remedy}\n");
        if !members.is_empty() {
            text += "\n| member | |\n| --- | --- |\n";
            for (name, says) in *members {
                let _ = writeln!(text, "| `{name}` | {says} |");
            }
        }
        let _ = write!(text, "\n```json\n{:#}\n```\n", self.example());
        text
    }
}

/// A table of all types, and a section for each, in Markdown.
pub fn page() -> String {
    let mut text = "| type | status | title |\n| --- | --- | --- |\n".to_owned();
    for kind in Kind::ALL {
        let Described {
            slug,
            status,
            title,
            ..
        } = kind.described();
        let _ = writeln!(
            text,
            "| [`{slug}`](#{slug}) | {} | {title} |",
            status.as_u16()
        );
    }
    for kind in Kind::ALL {
        text += "\n";
        text += &kind.section();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Map, Value};

    use super::*;

    /// Behind this line the page is written from the list.
    const WRITTEN: &str = "<!-- From here on written by `QUORUN_WRITE_DOCS=1 cargo test`. -->\n\n";

    #[test]
    fn the_page_says_what_the_list_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
        let there = std::fs::read_to_string(file).unwrap();
        let (written_by_hand, there) = there.split_once(WRITTEN).unwrap();
        if std::env::var_os("QUORUN_WRITE_DOCS").is_some() {
            std::fs::write(file, format!("{written_by_hand}{WRITTEN}{}", page())).unwrap();
        } else {
            let hint = "docs/errors.md is not what the list says; QUORUN_WRITE_DOCS=1 writes it";
            assert!(there == page(), "{hint}");
        }
    }

    #[test]
    fn every_kind_is_described_with_an_example_of_all_that_it_can_have() {
        let mut slugs = BTreeSet::new();
        for kind in Kind::ALL {
            let described = kind.described();
            assert!(slugs.insert(described.slug), "{kind:?} is not alone");
            assert_eq!(Kind::of_slug(described.slug), Some(*kind));
            let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(described.slug.chars().all(sound), "{kind:?}");
            assert!(described.status.is_client_error() || described.status.is_server_error());
            for text in [described.title, described.means, described.remedy] {
                assert!(
                    text.starts_with(|c: char| !c.is_lowercase()),
                    "{kind:?}: {text}"
                );
            }
            let example: Map<String, Value> = serde_json::from_str(described.example).unwrap();
            let has: BTreeSet<_> = example.keys().map(String::as_str).collect();
            let mut should: BTreeSet<_> = described.members.iter().map(|(name, _)| *name).collect();
            should.insert("detail");
            assert_eq!(has, should, "{kind:?}");
        }
    }
}
