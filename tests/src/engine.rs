//! The container engine of this machine.

use std::collections::HashMap;

use crate::wait::say;
pub use bollard::models::ContainerSummary;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveVolumeOptions, StartContainerOptions, TagImageOptionsBuilder,
};

/// The label that names the cluster of a container.
const LABEL: &str = "quorun.cluster";

/// A connection to the engine.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: bollard::Docker,
}

impl Engine {
    /// The engine, if there is one. Without one the caller has nothing to test and returns: that is said on stderr, or,
    /// with `QUORUN_REQUIRE_ENGINE=1`, is a failure.
    ///
    /// # Panics
    /// When there must be an engine and is none.
    pub async fn find(test: &str) -> Option<Self> {
        let reason = match bollard::Docker::connect_with_defaults() {
            Ok(docker) => match docker.ping().await {
                Ok(_) => return Some(Self { docker }),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        let required = std::env::var_os("QUORUN_REQUIRE_ENGINE").is_some_and(|v| v == "1");
        assert!(
            !required,
            "QUORUN_REQUIRE_ENGINE=1, and no container engine: {reason}"
        );
        say(&format!(
            "SKIPPED {test}: it needs a container engine, and there is none ({reason})"
        ));
        None
    }

    /// The containers of a cluster, running or not.
    ///
    /// # Panics
    /// When the engine fails; so for every call here.
    pub async fn containers(&self, cluster: &str) -> Vec<ContainerSummary> {
        let filters = HashMap::from([("label", vec![format!("{LABEL}={cluster}")])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        self.docker
            .list_containers(Some(options))
            .await
            .expect("list the containers")
    }

    /// The sandboxes of a cluster: those of its containers that run.
    pub async fn sandboxes(&self, cluster: &str) -> Vec<ContainerSummary> {
        let mut all = self.containers(cluster).await;
        all.retain(|container| {
            container.state.map(|s| s.to_string()).as_deref() == Some("running")
        });
        all
    }

    /// Everything about a container; `None` when it is gone.
    pub async fn inspect(&self, id: &str) -> Option<ContainerInspectResponse> {
        self.docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await
            .ok()
    }

    /// A container with the labels of a node's sandbox that does not end by itself.
    pub async fn orphan(&self, cluster: &str, node: u64, incarnation: u64) -> String {
        let image = self
            .sandboxes(cluster)
            .await
            .into_iter()
            .find_map(|sandbox| sandbox.image)
            .expect("a sandbox, to take its image");
        let labels = HashMap::from([
            (LABEL.to_owned(), cluster.to_owned()),
            ("quorun.node".to_owned(), node.to_string()),
            ("quorun.incarnation".to_owned(), incarnation.to_string()),
        ]);
        let body = ContainerCreateBody {
            image: Some(image),
            entrypoint: Some(vec!["sleep".to_owned(), "600".to_owned()]),
            labels: Some(labels),
            network_disabled: Some(true),
            ..ContainerCreateBody::default()
        };
        let id = self
            .docker
            .create_container(None::<CreateContainerOptions>, body)
            .await
            .expect("make a container")
            .id;
        self.docker
            .start_container(&id, None::<StartContainerOptions>)
            .await
            .expect("start a container");
        id
    }

    /// Another name, that nobody has had, for the image of the standard languages.
    pub async fn tagged(&self) -> String {
        let file = include_str!("../../sandbox/image/languages.toml");
        let file: toml::Value = toml::from_str(file).expect("the file of languages");
        let image = file["image"].as_str().expect("an image");
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos());
        let name = format!("quorun-test-{}-{now:x}", std::process::id());
        let options = TagImageOptionsBuilder::default()
            .repo(&name)
            .tag("1")
            .build();
        let tagged = self.docker.tag_image(image, Some(options)).await;
        tagged.expect("tag the standard image");
        format!("{name}:1")
    }

    /// Takes a name of an image away.
    pub async fn untag(&self, image: &str) {
        let removed = self
            .docker
            .remove_image(image, None::<RemoveImageOptions>, None)
            .await;
        removed.expect("take the name away");
    }

    /// Removes a container.
    pub async fn remove(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.docker
            .remove_container(id, Some(options))
            .await
            .expect("remove a container");
    }

    async fn remove_all(&self, cluster: &str) {
        for container in self.containers(cluster).await {
            let options = RemoveContainerOptionsBuilder::default()
                .force(true)
                .v(true)
                .build();
            let id = container.id.unwrap_or_default();
            let _ = self.docker.remove_container(&id, Some(options)).await;
        }
        let filters = HashMap::from([("label", vec![format!("{LABEL}={cluster}")])]);
        let options = ListVolumesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let volumes = self.docker.list_volumes(Some(options)).await;
        for volume in volumes.ok().and_then(|v| v.volumes).unwrap_or_default() {
            let _ = self
                .docker
                .remove_volume(&volume.name, None::<RemoveVolumeOptions>)
                .await;
        }
    }
}

/// Removes the containers and volumes of a cluster when it is dropped; the nodes must be gone by then.
#[derive(Debug)]
pub struct Sweep {
    cluster: String,
}

impl Sweep {
    /// What is to be removed at the end: everything with the cluster's label.
    #[must_use]
    pub fn of(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        let cluster = self.cluster.clone();
        // A thread of its own: this one may be in the middle of a runtime.
        let swept = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            else {
                return;
            };
            runtime.block_on(async {
                if let Ok(docker) = bollard::Docker::connect_with_defaults() {
                    Engine { docker }.remove_all(&cluster).await;
                }
            });
        });
        let _ = swept.join();
    }
}
