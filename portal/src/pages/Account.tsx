/** What belongs to the person: profile, password, where they are logged in, their data, and the end of the account. */

import "../styles/account.css";

import { session } from "../session";
import { DangerSection } from "../parts/AccountDanger";
import { LogInsSection } from "../parts/AccountLogIns";
import { PasswordSection } from "../parts/AccountPassword";
import { ProfileSection } from "../parts/AccountProfile";
import { Page } from "../ui/Page";

export default function Account() {
  const known = session.value;
  if (!known) {
    return null;
  }
  return (
    <Page title="Account">
      <div class="account">
        <ProfileSection session={known} />
        <PasswordSection user={known.user} />
        <LogInsSection />
        <DangerSection user={known.user} />
      </div>
    </Page>
  );
}
