//! Reading a configuration file: TOML, every key known, and an error that names file, line and key.

use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::exit::usage;

/// Reads and parses `path`. All errors are the user's to mend (exit code 2).
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration {} can't be read", path.display()))
        .map_err(usage)?;
    toml::from_str(&text)
        .map_err(|error| {
            anyhow::anyhow!(
                "the configuration {} is not right:\n{}",
                path.display(),
                error.to_string().trim_end()
            )
        })
        .map_err(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator::{ProtectConfig, StandbyConfig};
    use monitor::actions::Reach;
    use monitor::watch::Settings;
    use nbd_server::gateway::GatewayConfig;

    fn example(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs/examples")
            .join(name)
    }

    #[test]
    fn the_examples_are_right() -> anyhow::Result<()> {
        load::<ProtectConfig>(&example("vm.toml"))?.check()?;
        load::<StandbyConfig>(&example("standby.toml"))?.check()?;
        load::<GatewayConfig>(&example("gateway.toml"))?.check()?;
        let settings: Settings = load(&example("monitor.toml"))?;
        let reach = Reach {
            gateway: Some("/run/epochgate/gateway.sock".into()),
            memory: settings.memory.clone(),
            state: settings.state.clone(),
            ..Reach::default()
        };
        settings.check(&reach).map_err(anyhow::Error::msg)?;
        Ok(())
    }

    #[test]
    fn a_wrong_key_is_named_with_what_is_allowed() {
        let error = load::<GatewayConfig>(&example("vm.toml")).map(drop);
        let text = error.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("unknown field"), "{text}");
        assert!(text.contains("`listen`"), "{text}");
    }
}
