//! By what the nodes of a cluster know each other: a secret that they share, and certificates of a CA of their own.
//!
//! The secret never travels. A call carries a proof that its caller has it: a keyed hash over the cluster and both ids. So a
//! call that reaches a stranger, because an address has another owner now, gives that stranger nothing but the right to say
//! the same to the node that it was meant for. Who reads along can repeat what was said, as well as read it: against that
//! there is TLS.

use std::fmt;

use quorun_ledger::NodeId;
use tonic::Status;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as OwnCertificate, ServerTlsConfig};

use crate::error::Error;
use crate::options::ClusterId;

/// What sets these keys apart from all others that are made of the same secret.
const CONTEXT: &str = "quorun 2026-11 proof of a call between nodes";
/// The shortest secret: 128 bits, written in hexadecimal or better.
const SHORTEST: usize = 32;
const LONGEST: usize = 1024;
/// Secrets that may hold at one time: the new one, the former one, and some to spare.
const MOST: usize = 8;
/// The name that is in the certificate of every node, whatever its address: the CA says who belongs, not the name.
pub const NAME: &str = "quorun-node";
/// How long a handshake may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(5);

/// The secrets of a cluster: none, or one that is used and some that are taken as well.
#[derive(Clone, Default)]
pub struct Secrets {
    keys: Vec<[u8; 32]>,
    optional: bool,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.keys.len())
    }
}

impl Secrets {
    /// Reads the text of a file: one secret a line. This node calls with the first; calls with any of them are taken.
    ///
    /// # Errors
    /// When it holds none, or one that is too short to be one. The error never shows it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if !(SHORTEST..=LONGEST).contains(&line.len()) {
                return Err(Error::Options(format!(
                    "a secret has {} characters; it should have {SHORTEST} to {LONGEST}, drawn at random, one secret a line",
                    line.len()
                )));
            }
            keys.push(blake3::derive_key(CONTEXT, line.as_bytes()));
        }
        match keys.len() {
            0 => Err(Error::Options("there is no secret in it".to_owned())),
            1..=MOST => Ok(Self {
                keys,
                optional: false,
            }),
            many => Err(Error::Options(format!(
                "there are {many} secrets in it; at most {MOST}"
            ))),
        }
    }

    /// Calls without a proof are taken as well: for the time in which some nodes have the secret and some do not.
    #[must_use]
    pub const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Whether there is none, so that every call is taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What a call carries, if there is a secret.
    pub(crate) fn proof(&self, cluster: ClusterId, from: NodeId, target: NodeId) -> Option<String> {
        let key = self.keys.first()?;
        Some(hash(key, cluster, from, target).to_hex().to_string())
    }

    /// That a call carries what it must.
    pub(crate) fn check(
        &self,
        proof: Option<&str>,
        cluster: ClusterId,
        from: NodeId,
        target: NodeId,
    ) -> Result<(), Status> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let Some(proof) = proof else {
            if self.optional {
                return Ok(());
            }
            return Err(Status::unauthenticated(
                "this node takes calls only with the cluster's secret (--cluster-secret-file), and this one has none",
            ));
        };
        let proof = blake3::Hash::from_hex(proof).ok();
        // The comparison of two such hashes takes the same time whatever is in them.
        let right = |key| proof.is_some_and(|proof| hash(key, cluster, from, target) == proof);
        if self.keys.iter().any(right) {
            return Ok(());
        }
        Err(Status::unauthenticated(
            "the caller has another cluster secret (--cluster-secret-file) than this node",
        ))
    }
}

fn hash(key: &[u8; 32], cluster: ClusterId, from: NodeId, target: NodeId) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&cluster.0);
    hasher.update(&from.to_be_bytes());
    hasher.update(&target.to_be_bytes());
    hasher.finalize()
}

/// Certificates for the peer port, all in PEM.
#[derive(Clone)]
pub struct PeerTls {
    /// This node's certificate, with those between it and the CA.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// The CA of the cluster: whoever has a certificate of it is one of its nodes.
    pub ca: Vec<u8>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerTls")
    }
}

impl PeerTls {
    fn own(&self) -> OwnCertificate {
        OwnCertificate::from_pem(&self.certificate, &self.key)
    }

    /// Shows the certificate, and asks for one.
    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.own())
            .client_ca_root(Certificate::from_pem(&self.ca))
            .timeout(HANDSHAKE)
    }

    pub(crate) fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.own())
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(NAME)
            .timeout(HANDSHAKE)
    }
}

/// By what the nodes know each other.
#[derive(Clone, Debug, Default)]
pub struct PeerAccess {
    /// Secrets that they share; every call is taken if there are none.
    pub secrets: Secrets,
    /// Certificates; without them nothing is encrypted.
    pub tls: Option<PeerTls>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn secrets(lines: &[&str]) -> Secrets {
        Secrets::parse(&lines.join("\n")).unwrap()
    }

    const OLD: &str = "old-old-old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new-new-new";

    #[test]
    fn a_proof_is_good_for_one_caller_and_one_target() {
        let ours = secrets(&[NEW]);
        let proof = ours.proof(CLUSTER, 1, 2).unwrap();
        assert!(!proof.contains("new"));
        ours.check(Some(&proof), CLUSTER, 1, 2).unwrap();
        for (cluster, from, target) in [
            (ClusterId([2; 16]), 1, 2),
            (CLUSTER, 3, 2),
            (CLUSTER, 1, 3),
            (CLUSTER, 2, 1),
        ] {
            let error = ours.check(Some(&proof), cluster, from, target).unwrap_err();
            assert_eq!(error.code(), Code::Unauthenticated);
        }
        for wrong in [None, Some(""), Some("x"), Some(NEW)] {
            let error = ours.check(wrong, CLUSTER, 1, 2).unwrap_err();
            assert_eq!(error.code(), Code::Unauthenticated, "{wrong:?}");
        }
    }

    #[test]
    fn a_secret_is_changed_in_steps_that_fit_each_other() {
        let steps = [
            Secrets::default(),
            secrets(&[OLD]).optional(),
            secrets(&[OLD]),
            secrets(&[OLD, NEW]),
            secrets(&[NEW, OLD]),
            secrets(&[NEW]),
        ];
        for pair in steps.windows(2) {
            for (caller, called) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let proof = caller.proof(CLUSTER, 1, 2);
                called.check(proof.as_deref(), CLUSTER, 1, 2).unwrap();
            }
        }
        let proof = secrets(&[OLD]).proof(CLUSTER, 1, 2);
        secrets(&[NEW])
            .check(proof.as_deref(), CLUSTER, 1, 2)
            .unwrap_err();
        // What may be left out may still not be wrong.
        secrets(&[NEW])
            .optional()
            .check(proof.as_deref(), CLUSTER, 1, 2)
            .unwrap_err();
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        for text in ["", "# only a comment\n", "hunter2", &"x".repeat(2000)] {
            let error = Secrets::parse(text).unwrap_err().to_string();
            assert!(
                !error.contains("hunter2") && !error.contains("xxx"),
                "{error}"
            );
        }
        assert!(!format!("{:?}", secrets(&[OLD])).contains("old"));
    }

    proptest! {
        #[test]
        fn no_proof_panics(proof in ".*") {
            secrets(&[OLD]).check(Some(&proof), CLUSTER, 1, 2).unwrap_err();
            let _ = Secrets::parse(&proof);
        }
    }
}
