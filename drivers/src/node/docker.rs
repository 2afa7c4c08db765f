//! The Docker engine of a host, for vhost targets in containers.
//!
//! Invariants: no image is pulled (a missing image is an error); every call has a time limit.
//! Alternatives considered: installing docker if it is missing, as ZStack's agent does. Software that installs itself
//! on a production host at night is worse than an error with the package to install.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder},
};
use futures_util::StreamExt;
use ringfence_messages::{Code, ErrorCode, Result};
use tokio::process::Command;

/// How long the engine may take to answer. Too high: a hung engine hangs a health check.
pub const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the engine's service may take to start, and a container to be made.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Where Debian's engine listens.
pub const DEFAULT_SOCKET: &str = "/run/docker.sock";

/// The engine of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    socket: PathBuf,
}

/// A container to run.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name. One that is there already under this name is removed first.
    pub name: String,
    /// Its image, which must be on the host.
    pub image: String,
    /// Its program's arguments, behind the image's entry point.
    pub arguments: Vec<String>,
    /// Directories of the host that it sees, under the same paths.
    pub directories: Vec<PathBuf>,
}

impl Engine {
    /// The one that listens here.
    pub fn at(socket: impl Into<PathBuf>) -> Engine {
        Engine { socket: socket.into() }
    }

    async fn connect(&self) -> Result<Docker> {
        let missing = |why: String| {
            let details = format!(
                "no Docker engine answers at {}: {why}. Install docker.io and start its service, or name its socket in \
                 [docker] socket",
                self.socket.display()
            );
            ErrorCode::new(Code::OPERATION, details)
        };
        let seconds = START_TIMEOUT.as_secs();
        let docker = Docker::connect_with_unix(super::text(&self.socket)?, seconds, API_DEFAULT_VERSION);
        let docker = docker.map_err(|e| missing(e.to_string()))?;
        match tokio::time::timeout(ENGINE_TIMEOUT, docker.ping()).await {
            Ok(Ok(_)) => Ok(docker),
            Ok(Err(error)) => Err(missing(error.to_string())),
            Err(_) => Err(missing(format!("no answer within {ENGINE_TIMEOUT:?}"))),
        }
    }

    /// Has the engine answer; says what was done. If it does not, and its socket is the distribution's, the
    /// distribution's service is started.
    ///
    /// # Errors
    /// `SYS.1006` if there is none or it does not come up, with the fix.
    pub async fn ensure(&self) -> Result<String> {
        let Err(error) = self.connect().await else { return Ok("docker answers".to_owned()) };
        if self.socket != Path::new(DEFAULT_SOCKET) {
            return Err(error);
        }
        let start = Command::new("systemctl").args(["enable", "--now", "docker.service"]).kill_on_drop(true).output();
        match tokio::time::timeout(START_TIMEOUT, start).await {
            Ok(Ok(output)) if output.status.success() => self.connect().await.map(|_| "docker was started".to_owned()),
            _ => Err(error),
        }
    }

    /// Whether it answers. Starts nothing.
    ///
    /// # Errors
    /// `SYS.1006` if there is none, with the fix.
    pub async fn answers(&self) -> Result<()> {
        self.connect().await.map(|_| ())
    }

    /// Whether an image is on this host: nothing is pulled.
    ///
    /// # Errors
    /// `SYS.1006` if the engine cannot be asked.
    pub async fn has_image(&self, image: &str) -> Result<bool> {
        use bollard::errors::Error::DockerResponseServerError;
        let docker = self.connect().await?;
        match tokio::time::timeout(ENGINE_TIMEOUT, docker.inspect_image(image)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(DockerResponseServerError { status_code: 404, .. })) => Ok(false),
            Ok(Err(error)) => Err(odd(image, error.to_string())),
            Err(_) => Err(odd(image, format!("no answer within {ENGINE_TIMEOUT:?}"))),
        }
    }

    /// Whether a container runs.
    ///
    /// # Errors
    /// `SYS.1006` if the engine cannot be asked or knows no such container.
    pub async fn is_running(&self, container: &str) -> Result<bool> {
        let docker = self.connect().await?;
        let asked = tokio::time::timeout(ENGINE_TIMEOUT, docker.inspect_container(container, None)).await;
        let inspected = asked.map_err(|_| odd(container, format!("no answer within {ENGINE_TIMEOUT:?}")))?;
        let inspected = inspected.map_err(|e| odd(container, e.to_string()))?;
        Ok(inspected.state.and_then(|state| state.running).unwrap_or(false))
    }

    /// Starts a container without network, in the place of what is left of an earlier one.
    ///
    /// # Errors
    /// `SYS.1006` in the engine's own words.
    pub async fn run(&self, container: Container) -> Result<()> {
        let docker = self.connect().await?;
        let Container { name, image, arguments, directories } = container;
        let binds = directories.iter().map(|dir| Ok(format!("{0}:{0}", super::text(dir)?))).collect::<Result<_>>()?;
        let body = ContainerCreateBody {
            image: Some(image),
            cmd: Some(arguments),
            host_config: Some(HostConfig {
                binds: Some(binds),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let work = async {
            self.remove(&docker, &name).await?;
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            docker.create_container(Some(options), body).await?;
            docker.start_container(&name, None).await
        };
        match tokio::time::timeout(START_TIMEOUT, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(odd(&name, error.to_string())),
            Err(_) => Err(odd(&name, format!("it did not start within {START_TIMEOUT:?}"))),
        }
    }

    async fn remove(&self, docker: &Docker, name: &str) -> Result<(), bollard::errors::Error> {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        match docker.remove_container(name, Some(options)).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            done => done,
        }
    }

    /// The last lines that a container wrote, for an error.
    pub async fn tail(&self, container: &str) -> String {
        let Ok(docker) = self.connect().await else { return String::new() };
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("3").build();
        let lines = docker.logs(container, Some(options)).filter_map(|line| std::future::ready(line.ok()));
        let lines = lines.map(|line| line.to_string().trim().to_owned()).collect::<Vec<_>>();
        let lines = tokio::time::timeout(ENGINE_TIMEOUT, lines).await.unwrap_or_default();
        lines.join("; ").chars().take(500).collect()
    }
}

fn odd(container: &str, why: String) -> ErrorCode {
    ErrorCode::new(Code::OPERATION, format!("container {container}: {why}"))
}
