//! An export directory as one client may see it.

use std::sync::Arc;

use super::{AccessRules, Client, Rights};
use crate::export::{
    ChangedContext, Cutter, Export, ExportDirectory, ExportInfo, ExportListing, OpenRefused,
};

/// Applies the rules to everything that one client asks the directory.
pub(crate) struct Guard<'a> {
    pub directory: &'a dyn ExportDirectory,
    pub rules: &'a AccessRules,
    pub client: &'a Client,
}

impl Guard<'_> {
    /// What NBD_OPT_LIST shows: only what the client may attach.
    pub fn list(&self) -> Vec<ExportListing> {
        let mut exports = self.directory.list();
        if !self.rules.is_empty() {
            exports.retain(|export| self.rights(&export.name) != Rights::None);
        }
        exports
    }

    /// What an attachment would be told, without attaching.
    ///
    /// # Errors
    /// As [`ExportDirectory::describe`]; [`OpenRefused::Policy`] when the rules don't allow it, whether there is such an export or not.
    pub fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused> {
        let rights = self.allowed(name)?;
        let info = self.directory.describe(name);
        info.map(|info| limited(info, rights))
            .map_err(|refused| self.discreet(name, refused))
    }

    /// As [`ExportDirectory::changed_contexts`].
    ///
    /// # Errors
    /// As [`Guard::describe`].
    pub fn changed_contexts(
        &self,
        name: &str,
        queries: &[String],
        cutter: &Cutter,
    ) -> Result<Vec<ChangedContext>, OpenRefused> {
        self.describe(name)?;
        Ok(self.directory.changed_contexts(name, queries, cutter))
    }

    /// As [`ExportDirectory::list_contexts`].
    ///
    /// # Errors
    /// As [`Guard::describe`].
    pub fn list_contexts(
        &self,
        name: &str,
        queries: &[String],
    ) -> Result<Vec<String>, OpenRefused> {
        self.describe(name)?;
        Ok(self.directory.list_contexts(name, queries))
    }

    /// Attaches. The information is to be used instead of the export's own: it says "read-only" also where only this client is bound to that.
    ///
    /// # Errors
    /// As [`Guard::describe`].
    pub fn open(
        &self,
        name: &str,
        cutter: Cutter,
    ) -> Result<(Arc<dyn Export>, ExportInfo), OpenRefused> {
        let rights = self.allowed(name)?;
        let export = self.directory.open(name, cutter);
        let export = export.map_err(|refused| self.discreet(name, refused))?;
        let info = limited(export.info(), rights);
        Ok((export, info))
    }

    fn rights(&self, name: &str) -> Rights {
        self.rules.rights(self.client, &self.directory.names(name))
    }

    fn allowed(&self, name: &str) -> Result<Rights, OpenRefused> {
        if self.rules.is_empty() {
            return Ok(Rights::ReadWrite);
        }
        match self.rights(name) {
            Rights::None => Err(OpenRefused::Policy(format!(
                "the access rules of this server do not let {} attach '{name}'",
                self.client
            ))),
            rights => Ok(rights),
        }
    }

    /// The directory's own message names all exports there are.
    fn discreet(&self, name: &str, refused: OpenRefused) -> OpenRefused {
        match refused {
            OpenRefused::Unknown(_) if !self.rules.is_empty() => {
                OpenRefused::Unknown(format!("there is no export '{name}'"))
            }
            other => other,
        }
    }
}

fn limited(mut info: ExportInfo, rights: Rights) -> ExportInfo {
    if rights == Rights::ReadOnly {
        info.read_only = true;
        info.can_resize = false;
    }
    info
}
