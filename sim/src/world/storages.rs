//! Vhost targets, and the MDS agents of ZBS that deploy them.

use std::time::Duration;

use async_trait::async_trait;
use ringfence_actors::ports::{Call, MdsPort};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId, agent::Done, vhost::CreateVhostBdevReply, zbs::CheckHostConnectionReply,
};

use super::{End, State, links::Node};

impl State {
    /// Makes a target run; whether it did not before.
    pub(crate) fn deploy(&mut self, host: usize, storage: StorageId) -> Result<bool> {
        if self.machines[host].targets_broken > 0 {
            return Err(ErrorCode::new(Code::HOST_OPERATION, "the target ended at once: bad option"));
        }
        let started = self.machines[host].targets.insert(storage, true) == Some(false);
        if started {
            let name = self.machines[host].name.clone();
            self.log(format_args!("{name}: a vhost target is up"));
            self.settle(host);
        }
        Ok(started)
    }

    pub(crate) fn export(&self, host: usize, storage: StorageId) -> Result<()> {
        match self.machines[host].targets.get(&storage) {
            Some(true) => Ok(()),
            _ => Err(ErrorCode::new(Code::HOST_OPERATION, "the vhost target does not run")),
        }
    }
}

impl End {
    /// Asks the MDS, which goes to the host by SSH.
    async fn mds<T>(
        &self,
        host: HostId,
        call: Call,
        time: Duration,
        act: impl FnOnce(&mut State, usize) -> Result<T>,
    ) -> Result<T> {
        let dies = self.dies();
        let at = self.world.host(host)?;
        let reach = |state: &State| {
            let (controller, mds, there) = (Node::Controller, Node::Mds, Node::Host(at));
            let both = |a, b| state.links.both_ways(a, b);
            both(controller, mds) && both(mds, there) && state.machines[at].answers()
        };
        let silent = !reach(&self.world.state());
        if silent || time >= call.timeout {
            tokio::time::sleep(call.timeout).await;
            return Err(ErrorCode::new(Code::TIMEOUT, format!("the MDS did not answer within {:?}", call.timeout)));
        }
        tokio::time::sleep(time).await;
        let result = {
            let mut state = self.world.state();
            if reach(&state) {
                act(&mut state, at)
            } else {
                Err(ErrorCode::new(Code::TIMEOUT, "the MDS did not answer"))
            }
        };
        if dies {
            return self.die().await;
        }
        result
    }

    fn time(&self, range: std::ops::Range<u64>) -> Duration {
        self.world.state().some(range)
    }
}

#[async_trait]
impl MdsPort for End {
    async fn deploy_client(&self, _: StorageId, host: HostId, call: Call) -> Result<Done> {
        self.mds(host, call, self.time(100..3000), |_, _| Ok(Done {})).await
    }

    async fn update_host_dependency(&self, _: StorageId, host: HostId, call: Call) -> Result<Done> {
        self.mds(host, call, self.time(100..2000), |_, _| Ok(Done {})).await
    }

    async fn deploy_vhost(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done> {
        self.mds(host, call, self.time(500..5000), |state, at| state.deploy(at, storage).map(|_| Done {})).await
    }

    async fn check_host_connection(&self, _: StorageId, host: HostId, call: Call) -> Result<CheckHostConnectionReply> {
        self.mds(host, call, self.time(1..10), |state, at| {
            let connected = state.machines[at].contact;
            Ok(CheckHostConnectionReply { connected, reason: (!connected).then(|| "no CBD session".to_owned()) })
        })
        .await
    }

    async fn create_vhost_bdev(
        &self,
        storage: StorageId,
        host: HostId,
        _: &str,
        _: &str,
        bdev_name: &str,
        call: Call,
    ) -> Result<CreateVhostBdevReply> {
        self.mds(host, call, self.time(10..200), |state, at| {
            state.export(at, storage)?;
            Ok(CreateVhostBdevReply { socket_path: format!("/run/{bdev_name}.sock") })
        })
        .await
    }

    async fn delete_vhost_bdev(&self, _: StorageId, host: HostId, _: &str, call: Call) -> Result<Done> {
        self.mds(host, call, self.time(10..200), |_, _| Ok(Done {})).await
    }
}
