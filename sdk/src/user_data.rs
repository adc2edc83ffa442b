//! What a session keeps of its user, for the user.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::session::Session;

impl Session {
    /// Everything that this session keeps of its user, as a JSON document: bundle, events oldest
    /// first with item, behavior and time (seconds since 1970-01-01 UTC), feedback, and items added on the
    /// device with their features and attributes. What users may ask a service for; here they have
    /// it themselves.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it cannot be written as text.
    pub fn export_user_data(&self) -> Result<String> {
        let events: Vec<Value> = self
            .history()
            .events()
            .map(|e| json!({ "item": e.item, "behavior": e.behavior, "timestamp": e.timestamp }))
            .collect();
        let added: Vec<Value> = self
            .added()
            .map(|item| {
                let features: Value = item.features.iter().cloned().collect();
                let attributes: Value = item.attributes.iter().cloned().collect();
                json!({ "item": item.key, "features": features, "attributes": attributes })
            })
            .collect();
        let feedback: Vec<Value> = self
            .kept_feedback()
            .map(|(item, feedback, at)| {
                let feedback = format!("{feedback:?}").to_lowercase();
                json!({ "item": item, "feedback": feedback, "timestamp": at })
            })
            .collect();
        let manifest = self.bundle().manifest();
        let data = json!({
            "bundle_id": manifest.bundle_id,
            "bundle_version": manifest.bundle_version,
            "events": events,
            "unknown_items": self.history().unknown_items(),
            "feedback": feedback,
            "added_items": added,
        });
        serde_json::to_string_pretty(&data)
            .map_err(|e| Error::argument(format!("the user's data cannot be written: {e}")))
    }
}
