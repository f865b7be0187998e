import { platformTime } from '../common';
import type { PublicVersion } from '../assistants';
import type { Dialogue, DialogueMessage } from '../messages';
import type { ModelService } from '../model-services';

/** The shapes of protocols/assistant-platform.md, field for field. */

export function dialogueRow(dialogue: Dialogue) {
  return {
    createBy: dialogue.createdBy,
    createTime: platformTime(dialogue.createdAt),
    updateBy: dialogue.updatedBy,
    updateTime: platformTime(dialogue.updatedAt),
    params: {},
    tenantId: dialogue.tenantId,
    id: dialogue.id,
    name: dialogue.name,
    userId: dialogue.userId,
    sceneId: dialogue.versionId,
    manageId: dialogue.assistantId,
    modelServiceId: dialogue.modelServiceId,
    totalTokens: dialogue.totalTokens,
    youtaizhis: dialogue.credits,
    isUser: false,
    closeSse: dialogue.closed,
  };
}

/** The first event of a stream: the dialogue and the user's message. */
export function dialogueRecord(dialogue: Dialogue, message: DialogueMessage) {
  // The name is in the lists; the published record has none.
  const { closeSse, name: _, ...row } = dialogueRow(dialogue);
  return {
    ...row,
    realEventSource: {},
    speechUserDialogueMessage: messageRecord(message),
    closeSse,
  };
}

export function messageRecord(message: DialogueMessage) {
  return {
    createBy: message.createdBy,
    createTime: platformTime(message.createdAt),
    params: {},
    id: message.id,
    content: message.content,
    role: message.role,
    parentId: message.parentId,
    userDialogueId: message.dialogueId,
    completionTokens: message.completionTokens,
    promptTokens: message.promptTokens,
    totalTokens: message.totalTokens,
    youtaizhis: message.credits,
    userId: message.userId,
  };
}

export function messageRow(message: DialogueMessage) {
  return {
    ...messageRecord(message),
    status: message.status,
    modelServiceId: message.modelServiceId,
    ...(message.error && { error: { code: message.error.code, msg: message.error.message } }),
  };
}

/** What the answer of `Accept: application/json` shows of the reply. */
export function replyRecord(message: DialogueMessage) {
  return {
    id: message.id,
    parentId: message.parentId,
    role: message.role,
    content: message.content,
    status: message.status,
    promptTokens: message.promptTokens,
    completionTokens: message.completionTokens,
    totalTokens: message.totalTokens,
    youtaizhis: message.credits,
    createTime: platformTime(message.createdAt),
  };
}

/** An assistant by its version: its face, never its prompt. */
export function sceneRecord({ assistant, ...version }: PublicVersion) {
  return {
    id: version.id,
    manageId: version.assistantId,
    tenantId: version.tenantId,
    agentId: assistant.slug,
    name: assistant.name,
    description: assistant.description,
    avatar: assistant.avatar,
    greeting: version.greeting,
    suggestedQuestions: version.suggestedQuestions,
    modelServiceId: version.modelServiceId,
    version: version.number,
    published: version.publishedAt !== null,
    createTime: platformTime(version.createdAt),
    updateTime: platformTime(assistant.updatedAt),
  };
}

export function modelServiceRow(service: ModelService) {
  return {
    id: service.id,
    name: service.name,
    modelServiceType: service.type,
    model: service.model,
    orderNum: service.orderNum,
    contextWindow: service.contextWindow,
    inputPrice: service.inputPrice,
    outputPrice: service.outputPrice,
    shared: service.tenantId === null,
    createTime: platformTime(service.createdAt),
    updateTime: platformTime(service.updatedAt),
  };
}
