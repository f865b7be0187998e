import { CreateFoundation1795219200000 } from './1795219200000-create-foundation';
import { CreateConversations1795300000000 } from './1795300000000-create-conversations';

/** In order; a new migration is added at the end. */
export const migrations = [CreateFoundation1795219200000, CreateConversations1795300000000];
