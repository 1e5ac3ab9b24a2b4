//! Who is calling, and whom it means to call.
//!
//! Raft cannot see that a message has come to the wrong node: of another cluster, or one that has taken over an address
//! of a node that is gone. So every call carries the cluster and both ids, and is refused before it reaches its service
//! when they are not what they should be.

use quorun_ledger::NodeId;
use quorun_proto::{CLUSTER_KEY, FROM_KEY, PROOF_KEY, TARGET_KEY};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::access::Secrets;
use crate::options::ClusterId;

/// What calls to a peer carry.
#[derive(Clone, Debug)]
pub struct Identity {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    target: MetadataValue<Ascii>,
    proof: Option<MetadataValue<Ascii>>,
}

impl Identity {
    pub(crate) fn new(cluster: ClusterId, from: NodeId, target: NodeId, secrets: &Secrets) -> Self {
        let hex = cluster.to_string();
        Self {
            // Hexadecimal digits are visible ASCII.
            cluster: MetadataValue::try_from(hex).unwrap_or(MetadataValue::from_static("")),
            from: MetadataValue::from(from),
            target: MetadataValue::from(target),
            proof: secrets
                .proof(cluster, from, target)
                .and_then(|proof| MetadataValue::try_from(proof).ok())
                .map(|mut proof| {
                    proof.set_sensitive(true);
                    proof
                }),
        }
    }
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER_KEY, self.cluster.clone());
        metadata.insert(FROM_KEY, self.from.clone());
        metadata.insert(TARGET_KEY, self.target.clone());
        if let Some(proof) = &self.proof {
            metadata.insert(PROOF_KEY, proof.clone());
        }
        Ok(request)
    }
}

/// What the peer port does before a call reaches its service.
pub(crate) fn check(
    cluster: ClusterId,
    id: NodeId,
    secrets: Secrets,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    let text = cluster.to_string();
    move |request| {
        let metadata = request.metadata();
        compare(metadata, CLUSTER_KEY, "cluster", &text)?;
        compare(metadata, TARGET_KEY, "node", &id.to_string())?;
        let from = value(metadata, FROM_KEY).and_then(|from| from.parse::<NodeId>().ok());
        let Some(from) = from else {
            return Err(refused(format!(
                "a call to a peer port carries the id of its caller in {FROM_KEY}; this one does not"
            )));
        };
        secrets.check(value(metadata, PROOF_KEY), cluster, from, id)?;
        Ok(request)
    }
}

fn value<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(|value| value.to_str().ok())
}

fn compare(metadata: &MetadataMap, key: &str, what: &str, expected: &str) -> Result<(), Status> {
    match value(metadata, key) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(refused(format!(
            "this is {what} {expected}, but the call is for {what} {found}"
        ))),
        None => Err(refused(format!(
            "this is {what} {expected}, but the call does not say whom it is for ({key} is missing)"
        ))),
    }
}

fn refused(text: String) -> Status {
    Status::failed_precondition(text)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const HERE: ClusterId = ClusterId([1; 16]);

    fn call(mut identity: Identity) -> Result<Request<()>, Status> {
        check(HERE, 2, Secrets::default())(identity.call(Request::new(())).unwrap())
    }

    #[test]
    fn the_right_call_passes() {
        call(Identity::new(HERE, 1, 2, &Secrets::default())).unwrap();
    }

    #[test]
    fn a_wrong_call_is_told_what_was_expected_and_what_came() {
        let other = call(Identity::new(ClusterId([2; 16]), 1, 2, &Secrets::default())).unwrap_err();
        assert_eq!(other.code(), Code::FailedPrecondition);
        assert!(other.message().contains(&HERE.to_string()), "{other}");
        assert!(
            other.message().contains(&ClusterId([2; 16]).to_string()),
            "{other}"
        );

        let third = call(Identity::new(HERE, 1, 3, &Secrets::default())).unwrap_err();
        assert_eq!(third.code(), Code::FailedPrecondition);
        assert_eq!(
            third.message(),
            "this is node 2, but the call is for node 3"
        );

        let bare = check(HERE, 2, Secrets::default())(Request::new(())).unwrap_err();
        assert_eq!(bare.code(), Code::FailedPrecondition);
    }

    #[test]
    fn a_call_says_who_makes_it() {
        let mut request = Identity::new(HERE, 1, 2, &Secrets::default())
            .call(Request::new(()))
            .unwrap();
        request.metadata_mut().remove(FROM_KEY);
        let error = check(HERE, 2, Secrets::default())(request).unwrap_err();
        assert!(error.message().contains(FROM_KEY), "{error}");
    }

    #[test]
    fn a_caller_without_the_secret_is_refused_although_all_else_is_right() {
        let secrets = Secrets::parse("0123456789abcdef0123456789abcdef").unwrap();
        let with = |identity: Identity| {
            let mut identity = identity;
            let request = identity.call(Request::new(())).unwrap();
            check(HERE, 2, secrets.clone())(request).map(drop)
        };
        with(Identity::new(HERE, 1, 2, &secrets)).unwrap();
        let bare = with(Identity::new(HERE, 1, 2, &Secrets::default())).unwrap_err();
        assert_eq!(bare.code(), Code::Unauthenticated);
        let other = Secrets::parse("0123456789abcdef0123456789abcdeF").unwrap();
        let other = with(Identity::new(HERE, 1, 2, &other)).unwrap_err();
        assert_eq!(other.code(), Code::Unauthenticated);
    }
}
