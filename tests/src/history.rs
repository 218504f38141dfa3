//! A site whose VM can go back in time: its disks and its memory are kept, whatever the disk of this machine has left.

use crate::network::HOSTS;
use crate::site::Site;

/// A gateway's section for a history that does not depend on how full this machine's disk is.
pub const HISTORY: &str = "[group.history]\nmin_free = \"0B\"\n";

impl Site {
    /// Has the gateway keep the history of the disks, and the standby that of memory. Before they are started.
    pub fn keep_history(&self, memory_every: &str) {
        self.append("gateway.toml", &format!("\n{HISTORY}"));
        let memory = format!(
            "\n[memory_history]\ndir = \"{}\"\nevery = \"{memory_every}\"\nmin_free = \"0B\"\n",
            self.memory()
        );
        self.append("standby.toml", &memory);
    }

    /// Where the standby keeps memory.
    pub fn memory(&self) -> String {
        self.file("memory")
    }

    /// Starts the source from a state that a rewind has written, and waits until its VM runs.
    #[track_caller]
    pub fn start_source_from(&mut self, state: &str) {
        let config = self.file("vm.toml");
        let args = [
            "protect",
            "--json",
            "--config",
            &config,
            "--saved-state",
            state,
        ];
        let source = self.start(HOSTS[0], "source", args, &[]);
        self.source.insert(source).event(&["vm_started"]);
    }

    fn append(&self, name: &str, more: &str) {
        let text = std::fs::read_to_string(self.path().join(name)).expect("it was written");
        self.write(name, &(text + more));
    }
}
