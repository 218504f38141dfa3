//! The clones of the groups. The control API is its only caller; what a clone is, the group knows.

use std::path::Path;

use super::catalog::{Catalog, ChangeError};
use crate::control::api::CloneStatus;
use crate::group::history::Point;

impl Catalog {
    /// The clones of a group, by name.
    ///
    /// # Errors
    /// [`ChangeError::UnknownGroup`].
    pub fn clones(&self, group: &str) -> Result<Vec<CloneStatus>, ChangeError> {
        Ok(self.group_named(group)?.clone_statuses())
    }

    /// Makes a clone of a group: see [`Group::add_clone`](crate::group::Group::add_clone). May block.
    ///
    /// # Errors
    /// [`ChangeError`]; there is no clone then.
    pub fn add_clone(
        &self,
        group: &str,
        name: &str,
        at: Option<&Point>,
        dir: Option<&Path>,
    ) -> Result<CloneStatus, ChangeError> {
        // The group must not be closed or set back meanwhile.
        let _state = self.lock()?;
        Ok(self.group_named(group)?.add_clone(name, at, dir)?)
    }

    /// Removes a clone: see [`Group::remove_clone`](crate::group::Group::remove_clone). May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn remove_clone(&self, group: &str, name: &str, force: bool) -> Result<(), ChangeError> {
        let _state = self.lock()?;
        Ok(self.group_named(group)?.remove_clone(name, force)?)
    }
}
