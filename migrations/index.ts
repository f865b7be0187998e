import { CreateFoundation1795219200000 } from './1795219200000-create-foundation';
import { CreateConversations1795300000000 } from './1795300000000-create-conversations';
import { CreateSessions1795400000000 } from './1795400000000-create-sessions';

/** In order; a new migration is added at the end. */
export const migrations = [
  CreateFoundation1795219200000,
  CreateConversations1795300000000,
  CreateSessions1795400000000,
];
