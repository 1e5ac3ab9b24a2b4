//! A CA of a test's own.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

/// A CA, and certificates of it, in a folder that lasts as long as this value.
#[derive(Debug)]
pub struct Ca {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    /// A new one; its certificate is `ca.pem`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("write");
        Self { folder, issuer }
    }

    /// A file of the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a certificate for a host, and its key.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn issue(&self, name: &str, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let (cert, secret) = (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        );
        // As tools do it: a new file takes the place of the old one.
        for (path, text) in [(&secret, key.serialize_pem()), (&cert, certificate.pem())] {
            let draft = path.with_extension("new");
            std::fs::write(&draft, text).expect("write");
            std::fs::rename(&draft, path).expect("rename");
        }
        (cert, secret)
    }
}
