//! A VM with its load, its clients and its probe, from the start to the fault and the end: what [`crate::runner`] records and
//! [`crate::check`] looks at.

use std::time::Duration;

use tokio::time::Instant;

use crate::clients::Clients;
use crate::probe::{APP, BEAT, Probe};
use crate::shell::Shell;
use crate::spec::{Change, Spec, Way};
use crate::vm::{DISKS, Tools, Vm};

/// How long a guest may take to start: there may be many of them on a few cores.
const BOOT: Duration = Duration::from_secs(600);

/// How long a busy guest may take to hear a line.
const HEAR: Duration = Duration::from_secs(180);

/// A VM under load.
#[derive(Debug)]
pub struct Stand {
    /// The VM.
    pub vm: Vm,
    /// The guest's shell. None: it may start anew at any time.
    pub shell: Option<Shell>,
    /// The probe.
    pub probe: Probe,
    /// Clients outside.
    pub clients: Clients,
    /// Those who came when the load changed.
    pub later: Vec<Clients>,
}

impl Stand {
    /// Starts the VM, waits until it is up (but not for the load `boot`, of which that is a part), and begins the load.
    pub async fn start(tools: &Tools, spec: &Spec, slot: u32) -> anyhow::Result<Self> {
        let mut vm = Vm::start(tools, spec, slot).await?;
        let mut shell = None;
        if spec.load == "boot" {
            vm.protect().await?;
        } else {
            let mut opened = vm.shell(BOOT).await?;
            vm.protect().await?;
            for line in &spec.lines {
                opened.run(line, HEAR).await?;
            }
            shell = Some(opened);
        }
        let clients = Clients::start(&spec.clients, vm.address(), spec.seed, &vm.lab_qmp());
        let probe = Probe::start(vm.probe_port(BEAT), vm.probe_port(APP));
        Ok(Self {
            vm,
            shell,
            probe,
            clients,
            later: Vec::new(),
        })
    }

    /// Changes its load. A busy guest takes its time; clients come when it has heard.
    pub async fn change(&mut self, change: &Change, spec: &Spec) -> anyhow::Result<()> {
        if let Some(shell) = &mut self.shell {
            for line in &change.lines {
                shell.run(line, HEAR).await?;
            }
        }
        if !change.clients.is_empty() {
            let more = Clients::start(
                &change.clients,
                self.vm.address(),
                spec.seed ^ change.at_s,
                &self.vm.lab_qmp(),
            );
            self.later.push(more);
        }
        Ok(())
    }

    /// Puts the fault into it. Returns the instant at which it was begun: the guest says so before it carries a line out.
    pub async fn inject(&mut self, way: &Way) -> anyhow::Result<Instant> {
        match way {
            Way::Guest { line } => {
                let shell = self
                    .shell
                    .as_mut()
                    .ok_or_else(|| anyhow::anyhow!("this load has no shell"))?;
                shell.begin(line, HEAR).await?;
                Ok(Instant::now())
            }
            Way::DiskHangs | Way::DiskFails => {
                let mut qmp = self.vm.qmp().await?;
                let at = Instant::now();
                if *way == Way::DiskHangs {
                    qmp.hang(DISKS[0]).await?;
                } else {
                    qmp.fail(DISKS[0]).await?;
                }
                Ok(at)
            }
        }
    }
}
