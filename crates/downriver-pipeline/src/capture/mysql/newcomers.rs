//! Tables that get a name which another one had when the capture began.

use downriver_decode::mysql::ddl::Named;

use super::super::CaptureError;
use super::Run;
use super::ahead::Binlog;
use super::numbers::numbered;

impl Run<'_> {
    /// A table of which nothing is known. What had its name when the capture began is called otherwise by now, and starting
    /// again would take the name for that one's once more, and come to the same statement: it is taken in at once, as it is
    /// today.
    pub(super) async fn take_in(
        &mut self,
        table: &Named,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let (database, name) = (&table.database, &table.table);
        let Some(now) = self.catalog.table(database, name).await? else {
            return Ok(());
        };
        if now.problem.is_some() {
            self.refused.insert((database.clone(), name.clone()));
            return Ok(());
        }
        let schema = numbered(&self.intake.registry, None, now.schema);
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        let id = registered.schema().id;
        self.take_up(id, binlog).await
    }
}
