//! The engine's images.

use bollard::errors::Error as EngineError;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;

use super::{Docker, PING_PATIENCE, describe};
use crate::images::{Image, Presence};

impl Docker {
    /// Whether the engine has an image.
    pub(crate) async fn image(&self, name: &str) -> Presence {
        let asked = async {
            let client = self.client().await?;
            client.inspect_image(name).await
        };
        match tokio::time::timeout(PING_PATIENCE, asked).await {
            Ok(Ok(found)) => Presence::Present(Image {
                id: found.id.unwrap_or_else(|| name.to_owned()),
                digest: digest_of(name, &found.repo_digests.unwrap_or_default()),
            }),
            Ok(Err(EngineError::DockerResponseServerError {
                status_code: 404,
                message,
            })) => Presence::Missing(message),
            Ok(Err(EngineError::DockerResponseServerError { message, .. })) => {
                Presence::Unknown(message)
            }
            Ok(Err(error)) => Presence::Unknown(describe(&error)),
            Err(_) => Presence::Unknown(format!("no answer within {PING_PATIENCE:?}")),
        }
    }

    /// The name by digest of an image that a registry has.
    pub(crate) async fn digest_in_registry(&self, name: &str) -> Option<String> {
        let client = self.client().await.ok()?;
        let found = client.inspect_registry_image(name, None).await.ok()?;
        let digest = found.descriptor.digest?;
        Some(format!("{}@{digest}", repository(name)))
    }

    /// Pulls an image.
    pub(crate) async fn pull(
        &self,
        name: &str,
        progress: impl Fn(String) + Send,
    ) -> Result<(), String> {
        let client = self.client().await.map_err(|error| describe(&error))?;
        let mut options = CreateImageOptionsBuilder::default().from_image(name);
        if repository(name) == name {
            // Without a tag the engine would pull all that there are.
            options = options.tag("latest");
        }
        let pulled = client.create_image(Some(options.build()), None, None);
        tokio::pin!(pulled);
        while let Some(step) = pulled.next().await {
            let step = step.map_err(|error| match error {
                EngineError::DockerResponseServerError { message, .. } => message,
                EngineError::DockerStreamError { error } => error,
                other => describe(&other),
            })?;
            let Some(status) = step.status else { continue };
            let part = step.id.map(|id| format!("{id}: ")).unwrap_or_default();
            let far = step.progress_detail.and_then(|detail| {
                let (current, total) = (detail.current?, detail.total?);
                Some(format!(" {} of {} MiB", current >> 20, total >> 20))
            });
            progress(format!("{part}{status}{}", far.unwrap_or_default()));
        }
        Ok(())
    }
}

/// The part of an image's name before its tag and its digest.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    }
}

/// Of the names by digest that an engine has for an image, the one from the repository that `name` names.
fn digest_of(name: &str, digests: &[String]) -> Option<String> {
    let wanted = familiar(repository(name));
    digests
        .iter()
        .find(|digest| familiar(repository(digest)) == wanted)
        .cloned()
}

/// A repository's name as people write it: the usual registry is left out.
fn familiar(repository: &str) -> &str {
    let rest = repository.strip_prefix("docker.io/").unwrap_or(repository);
    rest.strip_prefix("library/").unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_without_tag_and_digest() {
        for (name, expected) in [
            ("python", "python"),
            ("python:3.13", "python"),
            ("host:5000/a/b", "host:5000/a/b"),
            ("host:5000/a/b:1", "host:5000/a/b"),
            ("a/b:1@sha256:00", "a/b"),
            ("a@sha256:00", "a"),
        ] {
            assert_eq!(repository(name), expected);
        }
    }

    #[test]
    fn an_image_is_pinned_by_the_digest_of_its_own_repository() {
        let digests = ["other@sha256:1", "docker.io/library/python@sha256:2"].map(str::to_owned);
        assert_eq!(
            digest_of("python:3", &digests).as_deref(),
            Some("docker.io/library/python@sha256:2")
        );
        assert_eq!(digest_of("mine/python:3", &digests), None);
        assert_eq!(digest_of("python", &[]), None);
    }
}
