//! TLS for clients: a certificate and its key from files, read anew when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{error, info};

use super::reload;

/// The certificate that clients are shown. Cheap to clone.
#[derive(Clone)]
pub struct Certificate {
    certificate: Arc<PathBuf>,
    key: Arc<PathBuf>,
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({})", self.certificate.display())
    }
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub fn open(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let config = read(certificate, key)?;
        Ok(Self {
            certificate: Arc::new(certificate.to_owned()),
            key: Arc::new(key.to_owned()),
            config: Arc::new(RwLock::new(config)),
        })
    }

    /// What holds for new connections.
    #[must_use]
    pub fn now(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn reread(&self) {
        match read(&self.certificate, &self.key) {
            Ok(config) => {
                info!("the certificate for clients was read anew");
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
            }
            Err(error) => error!("{error:#}; the certificate for clients stays as it was"),
        }
    }

    /// Reads the files anew whenever they have changed, and on SIGHUP.
    pub async fn follow(self) {
        let files = vec![self.certificate.to_path_buf(), self.key.to_path_buf()];
        reload::whenever_changed(files, || self.reread()).await;
    }
}

fn read(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = certificates("--tls-cert", certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("--tls-key: read a key in PEM from {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("--tls-cert: choose the versions of TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .context("--tls-cert and --tls-key do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// All certificates of a PEM file.
///
/// # Errors
/// When it cannot be read, or holds none.
pub fn certificates(option: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let place = || format!("{option}: read certificates in PEM from {}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .with_context(place)?
        .collect();
    let found = found.with_context(place)?;
    ensure!(
        !found.is_empty(),
        "{option}: there is no certificate in {}",
        path.display()
    );
    Ok(found)
}
